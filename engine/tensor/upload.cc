#include "engine/tensor/upload.h"

#include <utility>

namespace orthofed {

Tensor upload_buffer(int64_t bytes, [[maybe_unused]] Device device) {
#ifdef OF_HAVE_CUDA
  if (device == Device::cuda) {
    const std::shared_ptr<void> memory(cuda::allocate_pinned(size_t(bytes)), cuda::release_pinned);
    return Tensor::view(memory, memory.get(), {bytes}, DType::u8);
  }
#endif
  return Tensor::empty({bytes}, DType::u8, Device::cpu);
}

Upload::Upload(Device device) : device_(device) {
#ifdef OF_HAVE_CUDA
  if (device == Device::cuda) stream_ = std::make_unique<cuda::CopyStream>();
#endif
}

void Upload::start(const Tensor& to, const Tensor& from) {
  OF_CHECK(to.device() == device_ && from.device() == Device::cpu && to.size() == from.size(),
           "an upload goes from the host to its device");
#ifdef OF_HAVE_CUDA
  if (stream_)
    return stream_->copy(to.raw(), from.raw(), size_t(from.size()), queue_on(device_).cuda);
#endif
  OF_CHECK(!to_.defined(), "one upload at a time");
  to_ = to;
  from_ = from;
}

void Upload::join() {
#ifdef OF_HAVE_CUDA
  if (stream_) return stream_->join(queue_on(device_).cuda);
#endif
  finish();
}

void Upload::finish() {
#ifdef OF_HAVE_CUDA
  if (stream_) return stream_->finish();
#endif
  if (to_.defined()) to_.copy_from(from_);
  to_ = from_ = Tensor();
}

}  // namespace orthofed
