// Which variants there are, and which of them this machine can run. JANUS_VARIANTS, from build.py, lists those that are
// compiled in, the best first: JANUS_OFFER(name, whether this machine has what it needs).
#include <cstring>

#include "kernels.h"

namespace janus {

#define JANUS_OFFER(name, is_supported)  \
    namespace name {                     \
    extern const Kernels kernels;        \
    }
JANUS_VARIANTS
#undef JANUS_OFFER

namespace {

// The first that can run here and satisfies the condition.
template <typename Condition>
const Kernels* first(Condition&& is_wanted) {
#define JANUS_OFFER(name, is_supported) \
    if ((is_supported) && is_wanted(#name)) return &name::kernels;
    JANUS_VARIANTS
#undef JANUS_OFFER
    return nullptr;
}

}  // namespace

const Kernels* kernels_named(const char* name) {
    return first([name](const char* each) { return std::strcmp(each, name) == 0; });
}

const Kernels* best_kernels() {
    return first([](const char*) { return true; });
}

}  // namespace janus

extern "C" {

// The names of the variants that can run here, the best first, with a space between two.
__attribute__((visibility("default"))) const char* janus_kernel_names() {
    static const char* const names = [] {
        static char text[256];
        janus::first([](const char* each) {
            if (text[0]) std::strncat(text, " ", sizeof text - std::strlen(text) - 1);
            std::strncat(text, each, sizeof text - std::strlen(text) - 1);
            return false;
        });
        return text;
    }();
    return names;
}

// A variant by its name. Null where there is none of that name, or none that can run here.
__attribute__((visibility("default"))) const janus::Kernels* janus_kernels(const char* name) {
    return janus::kernels_named(name);
}

}  // extern "C"
