// Everything that is compiled once for each instruction set, as one unit: JANUS_VARIANT names the namespace.
#include "simd.h"
#include "dots.h"
#include "activations.h"
#include "represent.h"
#include "product.h"
#include "norm.h"
#include "tables.h"
#include "attend.h"
#include "sample.h"

#include "kernels.h"

#define JANUS_TEXT(name) #name
#define JANUS_NAME(name) JANUS_TEXT(name)

namespace janus::JANUS_VARIANT {

extern const Kernels kernels;
const Kernels kernels = {
    JANUS_NAME(JANUS_VARIANT), product, likeliest, norm, represent, table_row, rotate, store_token, attend, merge, sample,
};

}  // namespace janus::JANUS_VARIANT
