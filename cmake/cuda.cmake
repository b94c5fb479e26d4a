# Decides whether device cuda is built, and with which flags. Sets OF_CUDA to ON or OFF.
if(OF_SANITIZE)
  set(OF_CUDA OFF)  # sanitizers watch the emulator; compute-sanitizer watches a GPU
elseif(OF_CUDA STREQUAL AUTO)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(OF_CUDA ON)
  else()
    set(OF_CUDA OFF)
    message(STATUS "nvcc not found: devices cpu and simt")
  endif()
endif()
if(NOT OF_CUDA)
  return()
endif()

# Ampere and Hopper as machine code, and PTX from which a newer GPU's driver compiles.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 80-virtual)
endif()
# Registers, spills and shared memory of every kernel are kept beside its object.
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/cmake/ptxas_log.sh ${CMAKE_CXX_COMPILER_LAUNCHER})
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old (12.8 or newer); -DOF_CUDA=OFF "
                      "builds without it")
endif()
find_package(CUDAToolkit REQUIRED)

# CMake 3.25 knows no C++20 for nvcc 13: the flag is ours, and CMake is told not to set one.
set(CMAKE_CUDA_STANDARD_DEFAULT "")
string(APPEND CMAKE_CUDA_FLAGS " -std=c++20 --expt-relaxed-constexpr --extended-lambda -lineinfo -Xptxas=-v"
                               " -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas,-Wno-psabi")
if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
  string(APPEND CMAKE_CUDA_FLAGS " -DOF_CUDA_SM90A")  # kernels of Hopper's own are there to be launched
endif()
if(OF_WERROR)
  string(APPEND CMAKE_CUDA_FLAGS " -Werror=all-warnings -Xcompiler=-Werror")
endif()
