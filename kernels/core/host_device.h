// Functions that host code and kernels share.
#pragma once

#ifdef __CUDACC__
#define OF_HOST_DEVICE __host__ __device__
#else
#define OF_HOST_DEVICE
#endif
