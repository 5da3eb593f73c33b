# Sets CMAKE_CUDA_ARCHITECTURES, which has to happen before enable_language(CUDA) and before any target exists:
# the environment variable AMUSE_CUDA_ARCHITECTURES, else what the local GPUs are, else everything from Ampere on.
# The kernels use nothing that sm_86 and 89 have over sm_80, whose machine code runs there.
# Needs CMAKE_CUDA_COMPILER. Entries are CMake's: 90a-real is machine code, 120-virtual PTX, 120 both.

set(default_architectures 80-real 90a-real 100a-real 120)

# What this nvcc knows, as numbers with a trailing a where the architecture-specific variant exists.
execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch
  OUTPUT_VARIABLE listed ERROR_QUIET RESULT_VARIABLE listing_failed)
string(REGEX MATCHALL "[0-9]+" known "${listed}")

# nvcc lists base architectures only, so 90a is known when 90 is.
function(amuse_known_architectures result)
  set(kept)
  foreach(entry IN LISTS ARGN)
    string(REGEX MATCH "^[0-9]+" number "${entry}")
    if(listing_failed OR "${number}" IN_LIST known)
      list(APPEND kept "${entry}")
    endif()
  endforeach()
  set(${result} "${kept}" PARENT_SCOPE)
endfunction()

function(amuse_local_architectures result)
  set(found)
  find_program(AMUSE_NVIDIA_SMI nvidia-smi)
  mark_as_advanced(AMUSE_NVIDIA_SMI)
  if(AMUSE_NVIDIA_SMI)
    execute_process(COMMAND "${AMUSE_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE capabilities ERROR_QUIET RESULT_VARIABLE failed)
    if(failed EQUAL 0)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
      foreach(capability IN LISTS capabilities)
        string(REPLACE "." "" number "${capability}")
        if(number MATCHES "^(90|100|103)$")
          string(APPEND number "a")
        endif()
        list(APPEND found "${number}-real")
      endforeach()
      list(REMOVE_DUPLICATES found)
    endif()
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

if(NOT "$ENV{AMUSE_CUDA_ARCHITECTURES}" STREQUAL "")
  string(REGEX REPLACE "[ ,;]+" ";" CMAKE_CUDA_ARCHITECTURES "$ENV{AMUSE_CUDA_ARCHITECTURES}")
else()
  amuse_local_architectures(local)
  amuse_known_architectures(CMAKE_CUDA_ARCHITECTURES ${local})
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    amuse_known_architectures(CMAKE_CUDA_ARCHITECTURES ${default_architectures})
  endif()
endif()
foreach(entry IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(NOT entry MATCHES "^[0-9]+[af]?(-real|-virtual)?$")
    message(FATAL_ERROR "AMUSE_CUDA_ARCHITECTURES: expected entries such as 80, 90a-real or 120-virtual, got '${entry}'")
  endif()
endforeach()
