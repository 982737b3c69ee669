// Memory that only grows, aligned for the widest registers.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace janus {

template <typename T>
class Memory {
  public:
    Memory() = default;
    ~Memory() { std::free(start_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    Memory(Memory&& other) noexcept : start_(other.start_), size_(other.size_) {
        other.start_ = nullptr;
        other.size_ = 0;
    }

    // Room for `count` of them. What was there is lost when it has to grow. Throws: std::bad_alloc.
    T* reserve(size_t count) {
        if (count > size_) {
            std::free(start_);
            start_ = nullptr;
            size_ = 0;
            const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
            start_ = static_cast<T*>(std::aligned_alloc(64, bytes));
            if (!start_) throw std::bad_alloc();
            size_ = count;
        }
        return start_;
    }

    T* get() const { return start_; }

  private:
    T* start_ = nullptr;
    size_t size_ = 0;
};

}  // namespace janus
