// ldmatrix, stmatrix, movmatrix, mma, wgmma. All fragment layouts of the PTX manual follow one rule, stated above
// `read_fragment`. Products are exact, sums are float (double for f64) in the order of k: the hardware's own order
// and truncation are not modelled.
#include <cstring>

#include "handlers.h"

namespace ptx {

// Row and column of half `half` of the register of `lane` in an 8x8 tile of 16-bit elements.
struct Place {
  int row, column;
};
static Place tile_place(int lane, int half, bool transposed) {
  Place place{lane / 4, lane % 4 * 2 + half};
  return transposed ? Place{place.column, place.row} : place;
}

static int type_bits(Type type) {
  switch (type) {
    case Type::f64: return 64;
    case Type::tf32:
    case Type::f32:
    case Type::s32: return 32;
    case Type::f16:
    case Type::bf16: return 16;
    case Type::s4:
    case Type::u4: return 4;
    case Type::b1: return 1;
    default: return 8;
  }
}

// Calls `use` with a function that reads element `part` of a register.
template <class Use>
static void with_decoder(Type type, Use use) {
  switch (type) {
    case Type::f64: return use([](u64 bits, int) { return bits_as<double>(bits); });
    case Type::tf32: return use([](u64 bits, int) { return tf32_operand((u32)bits); });
    case Type::f16: return use([](u64 bits, int part) { return half_to_float((u16)(bits >> (16 * part))); });
    case Type::bf16: return use([](u64 bits, int part) { return bfloat_to_float((u16)(bits >> (16 * part))); });
    case Type::s8: return use([](u64 bits, int part) { return (s8)(bits >> (8 * part)); });
    case Type::u8: return use([](u64 bits, int part) { return (u8)(bits >> (8 * part)); });
    case Type::s4: return use([](u64 bits, int part) { return (s32)((u32)(bits >> (4 * part)) << 28) >> 28; });
    case Type::u4: return use([](u64 bits, int part) { return (s32)(bits >> (4 * part) & 15); });
    case Type::b1: return use([](u64 bits, int part) { return (s32)(bits >> part & 1); });
    case Type::e4m3: return use([](u64 bits, int part) { return decode((u32)(bits >> (8 * part)) & 0xff, E4M3); });
    default: return use([](u64 bits, int part) { return decode((u32)(bits >> (8 * part)) & 0xff, E5M2); });
  }
}

// Reads an operand fragment of `count` registers with `per` elements each: lane 4g + t holds, in register r, elements
// t * per ... of row g; A alternates between rows g and g + 8 first (if it has 16 rows), then steps 4 * per along k.
// B has one column a g. `place(row, k, value)` stores the element.
template <class Place>
static void read_fragment(Warp& warp, const s32* slot, int count, Type type, bool sixteen_rows, Place place) {
  int per = type == Type::f64 ? 1 : 32 / type_bits(type);
  with_decoder(type, [&](auto element) {
    for (int reg = 0; reg < count; reg++) {
      int below = sixteen_rows ? (reg & 1) * 8 : 0, block = (sixteen_rows ? reg >> 1 : reg) * 4 * per;
      const u64* bits = warp.reg(slot[reg]);
      for (u32 lane = 0; lane < LANES; lane++)
        for (int part = 0; part < per; part++)
          place(lane / 4 + below, block + lane % 4 * per + part, element(bits[lane], part));
    }
  });
}

namespace handler {

// slots: destinations, address. values: tiles, transposed, offset, narrow.
void load_matrix(Warp& warp, const Instruction& i, u32 mask) {
  int tiles = i.value[0];
  u16 rows[4][8][8] = {};
  u64 addresses[LANES] = {};
  u32 giving = tiles == 4 ? ALL_LANES : (1u << (8 * tiles)) - 1;
  require_defined(warp, i.slot[tiles], giving, "an address");
  u32 defined = ALL_LANES;
  for (int lane = 0; lane < 8 * tiles; lane++) {
    u64 address = warp.reg(i.slot[tiles])[lane] + (u64)i.value[2];
    if (i.value[3]) address = (u32)address;
    resolve(Space::generic, address);
    addresses[lane] = address;
    if (const u8* bytes = shared_bytes(warp, lane, address, 16, false)) {
      if (!shared_read(warp, lane, address, 16, {false, false, true})) defined = 0;
      std::memcpy(rows[lane / 8][lane % 8], bytes, 16);
    }
  }
  count_shared(warp, addresses, giving, 16);
  for (int tile = 0; tile < tiles; tile++) {
    if (i.slot[tile] < 0) continue;
    u64* to = warp.reg(i.slot[tile]);
    for (int lane = 0; lane < LANES; lane++) {
      Place low = tile_place(lane, 0, i.value[1]), high = tile_place(lane, 1, i.value[1]);
      to[lane] = rows[tile][low.row][low.column] | (u32)rows[tile][high.row][high.column] << 16;
    }
    define(warp, i.slot[tile], mask, defined, i.line);
  }
}

// slots: address, sources. values as for load_matrix.
void store_matrix(Warp& warp, const Instruction& i, u32) {
  int tiles = i.value[0];
  u16 rows[4][8][8];
  bool undefined = false;
  for (int tile = 0; tile < tiles; tile++) {
    if (warp.defined[i.slot[1 + tile]] != ALL_LANES) undefined = true;
    for (int lane = 0; lane < LANES; lane++)
      for (int half = 0; half < 2; half++) {
        Place place = tile_place(lane, half, i.value[1]);
        rows[tile][place.row][place.column] = (u16)(warp.reg(i.slot[1 + tile])[lane] >> (16 * half));
      }
  }
  u32 giving = tiles == 4 ? ALL_LANES : (1u << (8 * tiles)) - 1;
  require_defined(warp, i.slot[0], giving, "an address");
  u64 addresses[LANES] = {};
  for (int lane = 0; lane < 8 * tiles; lane++) {
    u64 address = warp.reg(i.slot[0])[lane] + (u64)i.value[2];
    if (i.value[3]) address = (u32)address;
    resolve(Space::generic, address);
    addresses[lane] = address;
    u8* bytes = shared_bytes(warp, lane, address, 16, true);
    if (!bytes) continue;
    const u8* row = (const u8*)rows[lane / 8][lane % 8];
    shared_write(warp, lane, address, 16, row, {true, false, true}, undefined);
    std::memcpy(bytes, row, 16);
    warp.cta->progress++;
  }
  count_shared(warp, addresses, giving, 16);
}

// movmatrix.trans: slots d, a.
void move_matrix(Warp& warp, const Instruction& i, u32 mask) {
  u16 tile[8][8];
  for (int lane = 0; lane < LANES; lane++)
    for (int half = 0; half < 2; half++) {
      Place place = tile_place(lane, half, false);
      tile[place.row][place.column] = (u16)(warp.reg(i.slot[1])[lane] >> (16 * half));
    }
  for (int lane = 0; lane < LANES; lane++)
    warp.reg(i.slot[0])[lane] = tile[lane % 4 * 2][lane / 4] | (u32)tile[lane % 4 * 2 + 1][lane / 4] << 16;
  define(warp, i.slot[0], mask, warp.defined[i.slot[1]], i.line);
}

// mma: slots d, a, b, c registers. values: rows, k, type of a, type of b, type of c and d, registers of a, b, c,
// satfinite, bit operation (0 none, 1 xor.popc, 2 and.popc), type of c.
template <class Sum>
static void multiply_with(Warp& warp, const Instruction& i) {
  int rows = i.value[0], k_size = i.value[1];
  Type a_type = (Type)i.value[2], b_type = (Type)i.value[3], d_type = (Type)i.value[4], c_type = (Type)i.value[10];
  int a_count = i.value[5], b_count = i.value[6], c_count = i.value[7],
      d_count = d_type == Type::f16 ? rows / 8 : rows / 4;
  Sum a[16][256], b[256][8], c[16][8];
  const s32 *a_slot = i.slot + d_count, *b_slot = a_slot + a_count, *c_slot = b_slot + b_count;
  read_fragment(warp, a_slot, a_count, a_type, rows == 16, [&](int row, int k, auto x) { a[row][k] = (Sum)x; });
  read_fragment(warp, b_slot, b_count, b_type, false, [&](int column, int k, auto x) { b[k][column] = (Sum)x; });
  // Accumulators: lane 4g + t holds columns 2t and 2t + 1 of row g, then of row g + 8.
  auto each_accumulator = [&](int registers, bool half, auto visit) {
    for (int reg = 0; reg < registers; reg++)
      for (int lane = 0; lane < LANES; lane++)
        for (int part = 0; part < (half ? 2 : 1); part++) {
          int index = half ? reg * 2 + part : reg;
          visit(reg, lane, part, c[lane / 4 + (index >> 1) * 8][lane % 4 * 2 + (index & 1)]);
        }
  };
  each_accumulator(c_count, c_type == Type::f16, [&](int reg, int lane, int part, Sum& value) {
    u64 bits = warp.reg(c_slot[reg])[lane];
    if (c_type == Type::f16)
      value = (Sum)half_to_float((u16)(bits >> (16 * part)));
    else if (c_type == Type::s32)
      value = (Sum)(s32)bits;
    else if (c_type == Type::f64)
      value = (Sum)bits_as<double>(bits);
    else
      value = (Sum)bits_as<float>((u32)bits);
  });
  for (int row = 0; row < rows; row++)
    for (int k = 0; k < k_size; k++) {
      Sum factor = a[row][k];
      if (i.value[9]) {
        for (int column = 0; column < 8; column++)
          c[row][column] += i.value[9] == 1 ? factor != b[k][column] : factor != 0 && b[k][column] != 0;
      } else {
        for (int column = 0; column < 8; column++) c[row][column] += factor * b[k][column];
      }
    }
  each_accumulator(d_count, d_type == Type::f16, [&](int reg, int lane, int part, Sum& value) {
    u64& to = warp.reg(i.slot[reg])[lane];
    if (d_type == Type::f16) {
      u64 half = float_to_half((float)value);
      to = part ? to | half << 16 : half;
    } else if (d_type == Type::s32) {
      // Sums of 8-bit products are exact in s64; they wrap, or clamp with .satfinite.
      to = i.value[8] ? (u32)clamp_to<s32>((s64)value) : (u32)(s64)value;
    } else {
      to = d_type == Type::f64 ? bits_as<u64>((double)value) : Plain<float>::store((float)value, 0);
    }
  });
}

void multiply(Warp& warp, const Instruction& i, u32 mask) {
  Type d_type = (Type)i.value[4];
  int rows = i.value[0], d_count = d_type == Type::f16 ? rows / 8 : rows / 4;
  int inputs = i.value[5] + i.value[6] + i.value[7];
  for (int k = 0; k < inputs; k++) require_defined(warp, i.slot[d_count + k], ALL_LANES, "an operand of mma");
  if (d_type == Type::s32)
    multiply_with<s64>(warp, i);
  else if (d_type == Type::f64)
    multiply_with<double>(warp, i);
  else
    multiply_with<float>(warp, i);
  for (int k = 0; k < d_count; k++) define(warp, i.slot[k], mask);
  warp.cta->machine->counters.tensor_flops += 2ull * rows * 8 * i.value[1];
}

// Byte offset of element (row, k) of a wgmma operand in shared memory, before swizzling. K-major tiles are 8 rows of
// one swizzle width; `stride` leads from one group of 8 rows to the next, `leading` from one 16-byte column to the
// next where there is no swizzle. MN-major (transposed) tiles have the roles of row and k exchanged.
static u32 descriptor_offset(u32 row, u32 k, u32 element, u32 width, u32 leading, u32 stride, bool transposed,
                             bool swizzled) {
  if (!transposed) {
    u32 along = k * element;
    return row / 8 * stride + row % 8 * width + (swizzled ? along : along / 16 * leading + along % 16);
  }
  u32 along = row * element;
  if (swizzled) return along / width * leading + k / 8 * stride + k % 8 * width + along % width;
  return along / 16 * stride + k / 8 * leading + k % 8 * 16 + along % 16;
}

static float shared_element(Warp& warp, u64 descriptor, u32 row, u32 k, bool transposed, Type type) {
  u32 base = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
      stride = (descriptor >> 32 & 0x3fff) << 4;
  u32 swizzle = descriptor >> 62, element = type_bits(type) / 8;
  static const u32 widths[4] = {16, 128, 64, 32}, masks[4] = {0, 7, 3, 1};
  u32 address = base + descriptor_offset(row, k, element, widths[swizzle], leading, stride, transposed, swizzle);
  address ^= (address >> 7 & masks[swizzle]) << 4;
  const u8* bytes = shared_bytes(warp, 0, address, element, false);
  if (!bytes) return 0;
  shared_read(warp, 0, address, element, {false, false, true});
  u32 bits = 0;
  std::memcpy(&bits, bytes, element);
  float value = 0;
  with_decoder(type, [&](auto decoder) { value = (float)decoder(bits, 0); });
  return value;
}

// wgmma.fence: what was written to registers before it is what a wgmma after it sees.
void fence_wgmma(Warp& warp, const Instruction&, u32) { warp.fenced = warp.executed; }

static void require_fence(Warp& warp, const Instruction& i, s32 slot, const char* use) {
  if (warp.fenced && warp.written[slot] <= warp.fenced) return;
  warp.cta->machine->report(Finding::missing_fence, warp, 0, i.line, [&] {
    return warp.fenced ? std::string(use) + " of wgmma was written after the last wgmma.fence"
                       : std::string("the first wgmma of the warp comes before any wgmma.fence");
  });
}

// wgmma: slots d registers, a (4 registers or a descriptor), descriptor of b, scale-d predicate.
// values: n, k, operand type, a in registers, a negated, b negated, a transposed, b transposed, d is f16.
// Each warp computes its own 16 of the 64 rows.
void warpgroup_multiply(Warp& warp, const Instruction& i, u32) {
  int n = i.value[0], k_size = i.value[1];
  Type type = (Type)i.value[2];
  bool from_registers = i.value[3], half = i.value[8];
  int d_count = half ? n / 4 : n / 2;
  static thread_local float a[16][64], b[64][256];
  const s32* slot = i.slot + d_count;
  if (from_registers) {
    for (int k = 0; k < 4; k++) {
      require_defined(warp, slot[k], ALL_LANES, "an operand of wgmma");
      require_fence(warp, i, slot[k], "an operand");
    }
    read_fragment(warp, slot, 4, type, true, [&](int row, int k, auto x) { a[row][k] = (float)x; });
    slot += 4;
  } else {
    require_defined(warp, *slot, ALL_LANES, "a descriptor");
    u64 descriptor = warp.reg(*slot++)[0];
    for (int row = 0; row < 16; row++)
      for (int k = 0; k < k_size; k++)
        a[row][k] = shared_element(warp, descriptor, warp.id % 4 * 16 + row, k, i.value[6], type);
  }
  require_defined(warp, *slot, ALL_LANES, "a descriptor");
  u64 descriptor = warp.reg(*slot++)[0];
  for (int k = 0; k < k_size; k++)
    for (int column = 0; column < n; column++)
      b[k][column] = shared_element(warp, descriptor, column, k, i.value[7], type);
  require_defined_predicate(warp, *slot, ALL_LANES);
  bool accumulate = warp.predicates[*slot] & 1;
  float sign = i.value[4] == i.value[5] ? 1.f : -1.f;
  for (int reg = 0; reg < d_count; reg++) {
    s32 to = i.slot[reg];
    require_fence(warp, i, to, "an accumulator");
    if (accumulate && warp.origin[to] != PENDING_WGMMA) require_defined(warp, to, ALL_LANES, "an accumulator of wgmma");
    for (int lane = 0; lane < LANES; lane++) {
      u64 bits = warp.reg(to)[lane], result = 0;
      for (int part = 0; part < (half ? 2 : 1); part++) {
        int index = half ? reg * 2 + part : reg;
        int row = lane / 4 + (index >> 1 & 1) * 8, column = index / 4 * 8 + lane % 4 * 2 + (index & 1);
        float sum = !accumulate ? 0.f : half ? half_to_float((u16)(bits >> (16 * part))) : bits_as<float>((u32)bits);
        for (int k = 0; k < k_size; k++) sum += sign * a[row][k] * b[k][column];
        result |= half ? (u64)float_to_half(sum) << (16 * part) : Plain<float>::store(sum, 0);
      }
      warp.reg(to)[lane] = result;
    }
    warp.defined[to] = 0;
    warp.origin[to] = PENDING_WGMMA;
    warp.pending_registers.push_back(to);
  }
  warp.cta->machine->counters.tensor_flops += 2ull * 16 * n * k_size;
}

}  // namespace handler
}  // namespace ptx
