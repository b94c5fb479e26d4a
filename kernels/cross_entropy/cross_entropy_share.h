// One class's share of a sample's loss, shared by CPU and GPU: phi(q) = -(1 - q)^f log q, and
// q phi'(q), which is what the chain rule through the softmax needs:
//   dl/dz_k = t_k q_k phi'(q_k) - q_k sum_j t_j q_j phi'(q_j).
#pragma once
#include <cmath>

#include "kernels/core/host_device.h"

namespace orthofed {

template <class T>
struct Share {
  T value, slope;
};

template <class T>
OF_HOST_DEVICE Share<T> share(T log_q, T focal) {
  if (focal == T(0)) return {-log_q, T(-1)};
  const T q = std::exp(log_q), rest = -std::expm1(log_q);  // 1 - q without cancellation
  if (rest <= T(0)) return {T(0), T(0)};                   // q = 1: the limit of both
  const T power = std::pow(rest, focal);
  return {-power * log_q, focal * q * power / rest * log_q - power};
}

}  // namespace orthofed
