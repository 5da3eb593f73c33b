// Element types of the tensors that cross the Python boundary; bind.cpp exports these codes.
#pragma once

namespace amuse {

enum class Dtype : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

}  // namespace amuse
