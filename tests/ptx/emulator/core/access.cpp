// ld, st, atom, red, cvta, isspacep, fences.
#include <cstring>

#include "handlers.h"

namespace ptx {

enum Order { WEAK = 0, STRONG = 1, ACQUIRE = 2, RELEASE = 4 };

static u64 address_of(Warp& warp, s32 slot, s64 offset, bool narrow, u32 lane) {
  u64 address = warp.reg(slot)[lane] + (u64)offset;
  return narrow ? (u32)address : address;
}

static u64 read_number(const u8* bytes, u32 size, bool is_signed, u32 register_bytes) {
  u64 value = 0;
  std::memcpy(&value, bytes, size);
  if (is_signed && size < 8) value = (u64)((s64)(value << (64 - 8 * size)) >> (64 - 8 * size));
  return register_bytes == 8 ? value : value & ((1ull << (8 * register_bytes)) - 1);
}

static Buffer& buffer_of(Warp& warp, u64 address) { return warp.cta->machine->buffers[(address >> REGION_BITS) - 1]; }

// Local memory is private: bounds and definedness, no races.
static u8* local_bytes(Warp& warp, u32 lane, u64 address, u32 size, bool write) {
  u32 all = warp.cta->machine->program->local_bytes;
  if (address + size <= all && address + size >= size) return &warp.local[(size_t)lane * all + address];
  warp.cta->machine->report(Finding::out_of_bounds, warp, lane, warp.instruction().line, [&] {
    return std::to_string(size) + "-byte " + (write ? "write" : "read") + " at byte " + std::to_string((s64)address) +
           " of local memory, which has " + std::to_string(all) + " bytes";
  });
  return nullptr;
}

static void count_access(Warp& warp, Space space, const u64* address, u32 mask, u32 size, bool write) {
  if (space == Space::shared) count_shared(warp, address, mask, size);
  if (space == Space::global || space == Space::constant) count_global(warp, address, mask, size, write);
}

namespace handler {

// slots: destinations, address. values: space, element size, elements, signed, register bytes, order, offset, narrow.
void load(Warp& warp, const Instruction& i, u32 mask) {
  u32 element = i.value[1], count = i.value[2], size = element * count, register_bytes = i.value[4];
  bool is_signed = i.value[3], narrow = i.value[7];
  Use use{false, i.value[5] != WEAK, false};
  s32 address_slot = i.slot[count];
  require_defined(warp, address_slot, mask, "an address");
  u64 addresses[LANES], values[LANES][8] = {};
  u32 defined = ALL_LANES;
  Space space = (Space)i.value[0];
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    u64 address = address_of(warp, address_slot, i.value[6], narrow, lane);
    space = resolve((Space)i.value[0], address);
    addresses[lane] = address;
    const u8* bytes = nullptr;
    if (space == Space::shared) {
      bytes = shared_bytes(warp, lane, address, size, false);
      if (bytes && !shared_read(warp, lane, address, size, use)) defined &= ~(1u << lane);
    } else if (space == Space::local) {
      bytes = local_bytes(warp, lane, address, size, false);
      if (bytes)
        for (u32 k = 0; k < size; k++)
          if (!warp.local_defined[bytes - warp.local.data() + k]) defined &= ~(1u << lane);
    } else if (space == Space::param) {
      auto& parameters = warp.cta->machine->parameters;
      if (address + size <= parameters.size())
        bytes = &parameters[address];
      else
        warp.cta->machine->report(Finding::out_of_bounds, warp, lane, i.line,
                                  [] { return std::string("read past the kernel's parameters"); });
    } else {
      bytes = global_bytes(warp, lane, address, size, use);
      if (bytes && warp.cta->machine->races) {
        if (i.value[5] != WEAK) acquire(warp, address);
        Buffer& buffer = buffer_of(warp, address);
        global_access(warp, lane, buffer, address - buffer.base, size, nullptr, use);
      }
    }
    if (bytes)
      for (u32 k = 0; k < count; k++)
        values[lane][k] = read_number(bytes + k * element, element, is_signed, register_bytes);
  }
  count_access(warp, space, addresses, mask, size, false);
  for (u32 k = 0; k < count; k++) {
    if (i.slot[k] < 0) continue;
    u64* to = warp.reg(i.slot[k]);
    each_lane(mask, [&](int lane) { to[lane] = values[lane][k]; });
    define(warp, i.slot[k], mask, defined, i.line);
  }
}

// slots: address, sources. values as for load, register bytes unused.
void store(Warp& warp, const Instruction& i, u32 mask) {
  u32 element = i.value[1], count = i.value[2], size = element * count;
  bool narrow = i.value[7];
  Use use{true, i.value[5] != WEAK, false};
  require_defined(warp, i.slot[0], mask, "an address");
  u64 addresses[LANES];
  Space space = (Space)i.value[0];
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    u64 address = address_of(warp, i.slot[0], i.value[6], narrow, lane);
    space = resolve((Space)i.value[0], address);
    addresses[lane] = address;
    u8 bytes[32];
    bool defined = true;
    for (u32 k = 0; k < count; k++) {
      std::memcpy(bytes + k * element, &warp.reg(i.slot[1 + k])[lane], element);
      if (!(warp.defined[i.slot[1 + k]] >> lane & 1)) defined = false;
    }
    u8* to = nullptr;
    if (space == Space::shared) {
      to = shared_bytes(warp, lane, address, size, true);
      if (to) shared_write(warp, lane, address, size, bytes, use, !defined);
    } else if (space == Space::local) {
      to = local_bytes(warp, lane, address, size, true);
      if (to) std::memset(&warp.local_defined[to - warp.local.data()], defined, size);
    } else if (space == Space::global) {
      for (u32 k = 0; k < count; k++) require_defined(warp, i.slot[1 + k], 1u << lane, "a value in global memory");
      to = global_bytes(warp, lane, address, size, use);
      if (to && warp.cta->machine->races) {
        Buffer& buffer = buffer_of(warp, address);
        global_access(warp, lane, buffer, address - buffer.base, size, bytes, use);
        if (i.value[5] != WEAK) release(warp, address, !(i.value[5] & RELEASE));
      }
    }
    if (to && std::memcmp(to, bytes, size)) {
      std::memcpy(to, bytes, size);
      warp.cta->progress++;
    }
  }
  count_access(warp, space, addresses, mask, size, true);
}

enum Operation { ADD, MIN, MAX, INC, DEC, AND, OR, XOR, EXCH, CAS };

template <class T>
static T combine_numbers(T old, T b, T c, Operation operation) {
  if constexpr (std::is_floating_point_v<T>) {
    switch (operation) {
      case ADD: return old + b;
      case MIN: return float_minimum(old, b);
      case MAX: return float_maximum(old, b);
      default: return b;
    }
  } else {
    switch (operation) {
      case ADD: return wrap_add(old, b);
      case MIN: return std::min(old, b);
      case MAX: return std::max(old, b);
      case INC: return old >= b ? 0 : old + 1;
      case DEC: return old == 0 || old > b ? b : old - 1;
      case AND: return old & b;
      case OR: return old | b;
      case XOR: return old ^ b;
      case EXCH: return b;
      default: return old == b ? c : old;
    }
  }
}

template <class Format>
static u64 combine(u64 old, u64 b, u64 c, Operation operation, bool flush = false) {
  u64 result = 0;
  for (int part = 0; part < Format::parts; part++) {
    auto value = combine_numbers(Format::load(old, part), Format::load(b, part), Format::load(c, part), operation);
    if constexpr (Format::floating)
      if (flush) value = Format::flush(value);
    result |= Format::store(value, part);
  }
  return result;
}

static u64 combine(Type type, u64 old, u64 b, u64 c, Operation operation, Space space) {
  switch (type) {
    case Type::u32:
    case Type::b32: return combine<tag::u32_>(old, b, c, operation);
    case Type::s32: return combine<tag::s32_>(old, b, c, operation);
    case Type::u64:
    case Type::b64: return combine<tag::u64_>(old, b, c, operation);
    case Type::s64: return combine<tag::s64_>(old, b, c, operation);
    case Type::b16: return combine<tag::u16_>(old, b, c, operation);
    // atom.add.f32 flushes subnormal numbers in global memory and keeps them in shared memory.
    case Type::f32: return combine<tag::f32_>(old, b, c, operation, space == Space::global);
    case Type::f64: return combine<tag::f64_>(old, b, c, operation);
    case Type::f16: return combine<tag::f16_>(old, b, c, operation);
    case Type::bf16: return combine<tag::bf16_>(old, b, c, operation);
    case Type::f16x2: return combine<tag::f16x2_>(old, b, c, operation);
    default: return combine<tag::bf16x2_>(old, b, c, operation);
  }
}

// slots: destinations (-1 for red), address, operands b, operands c (-1 where there is none).
// values: space, type, element size, elements, operation, order, offset, narrow.
void atomic(Warp& warp, const Instruction& i, u32 mask) {
  u32 element = i.value[2], count = i.value[3], size = element * count;
  s32 address_slot = i.slot[count];
  const s32 *b = i.slot + count + 1, *c = b + count;
  require_defined(warp, address_slot, mask, "an address");
  for (u32 k = 0; k < count; k++) {
    require_defined(warp, b[k], mask, "an atomic operand");
    require_defined(warp, c[k], mask, "an atomic operand");
  }
  Use use{true, true, true};
  u64 addresses[LANES];
  Space space = (Space)i.value[0];
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(mask >> lane & 1)) continue;
    u64 address = address_of(warp, address_slot, i.value[6], i.value[7], lane);
    space = resolve((Space)i.value[0], address);
    addresses[lane] = address;
    u8* bytes = nullptr;
    if (space == Space::shared) {
      bytes = shared_bytes(warp, lane, address, size, true);
      if (!bytes) continue;
      if (warp.cta->machine->races) acquire(warp, address | SHARED_WINDOW);
      shared_read(warp, lane, address, size, use);
      shared_write(warp, lane, address, size, nullptr, use);
      if (warp.cta->machine->races) release(warp, address | SHARED_WINDOW, !(i.value[5] & RELEASE));
    } else {
      bytes = global_bytes(warp, lane, address, size, use);
      if (!bytes) continue;
      if (warp.cta->machine->races) {
        acquire(warp, address);
        Buffer& buffer = buffer_of(warp, address);
        global_access(warp, lane, buffer, address - buffer.base, size, nullptr, use);
        release(warp, address, !(i.value[5] & RELEASE));
      }
    }
    for (u32 k = 0; k < count; k++) {
      u64 old = 0;
      std::memcpy(&old, bytes + k * element, element);
      u64 third = c[k] < 0 ? 0 : warp.reg(c[k])[lane];
      u64 result = combine((Type)i.value[1], old, warp.reg(b[k])[lane], third, (Operation)i.value[4], space);
      if (result != old) warp.cta->progress++;
      std::memcpy(bytes + k * element, &result, element);
      if (i.slot[k] >= 0) warp.reg(i.slot[k])[lane] = old;
    }
  }
  for (u32 k = 0; k < count; k++) define(warp, i.slot[k], mask);
  count_access(warp, space, addresses, mask, size, true);
}

// cvta: slots d, a. values: window, 1 to leave it.
void to_window(Warp& warp, const Instruction& i, u32 mask) {
  u64 window = i.value[0] == (s64)Space::shared ? SHARED_WINDOW : i.value[0] == (s64)Space::local ? LOCAL_WINDOW : 0;
  u64* to = warp.reg(i.slot[0]);
  const u64* from = warp.reg(i.slot[1]);
  each_lane(mask, [&](int lane) { to[lane] = i.value[1] ? from[lane] & ~window : from[lane] | window; });
  define(warp, i.slot[0], mask, warp.defined[i.slot[1]], i.line);
}

// isspacep: slots p, a. values: space.
void is_space(Warp& warp, const Instruction& i, u32 mask) {
  require_defined(warp, i.slot[1], mask, "an address");
  u32 result = 0;
  for (u32 lane = 0; lane < LANES; lane++) {
    u64 address = warp.reg(i.slot[1])[lane];
    result |= (u32)(resolve(Space::generic, address) == (Space)i.value[0]) << lane;
  }
  u32& to = warp.predicates[i.slot[0]];
  to = (to & ~mask) | (result & mask);
  warp.predicates_defined[i.slot[0]] |= mask;
}

void fence(Warp& warp, const Instruction&, u32) { ptx::fence(warp); }
void nothing(Warp&, const Instruction&, u32) {}

}  // namespace handler
}  // namespace ptx
