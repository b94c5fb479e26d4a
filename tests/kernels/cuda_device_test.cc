// What device cuda says of itself, with a GPU or without.
#include "kernels/core/cuda_device.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <vector>

#include "tests/support/files.h"
#include "tests/support/memory.h"

#ifdef OF_HAVE_CUDA

namespace orthofed::test {
namespace {

TEST(CudaDevice, TellsWhatIsHere) {
  const std::vector<cuda::Gpu> gpus = cuda::gpus();
  EXPECT_EQ(gpus.size(), size_t(cuda::device_count()));
  for (const cuda::Gpu& gpu : gpus) {
    EXPECT_NE(gpu.name, "");
    EXPECT_GE(gpu.capability, 75);
    EXPECT_GT(gpu.memory, gpu.free);
  }
  if (gpus.empty()) {
    EXPECT_NE(cuda::why_no_gpu(), "");
  }
  EXPECT_GE(cuda::toolkit_version(), 12080);
}

TEST(CudaDevice, TimesWhatIsQueued) {
  if (!have_gpu()) return;
  const double seconds = cuda::seconds_of({}, [] {});
  EXPECT_TRUE(seconds >= 0 && seconds < 1) << seconds;
}

// Numbers go up, are zeroed where they came from, and come back as they went.
TEST(CudaDevice, CopiesBesideAStream) {
  if (!have_gpu()) return;
  constexpr size_t n = 1 << 20;
  const std::shared_ptr<void> pinned(cuda::allocate_pinned(n), cuda::release_pinned);
  const std::shared_ptr<void> device(cuda::allocate(n), cuda::release);
  auto* const host = static_cast<unsigned char*>(pinned.get());
  cuda::CopyStream copies;
  for (const unsigned char value : {3, 7}) {
    std::fill_n(host, n, value);
    copies.copy(device.get(), host, n, {});
    copies.finish();
    std::fill_n(host, n, static_cast<unsigned char>(0));
    copies.join({});
    std::vector<unsigned char> back(n);
    cuda::copy_rows(back.data(), n, device.get(), n, n, 1, {});
    EXPECT_EQ(back, std::vector<unsigned char>(n, value));
  }
}

TEST(CudaDevice, MarksPointsInAStreamsTime) {
  if (!have_gpu()) return;
  cuda::Timeline timeline({});
  EXPECT_TRUE(timeline.take().empty());
  for (const int64_t marks : {3, 1, 5}) {  // fewer, then more than before
    cuda::begin_range("a range");
    for (int64_t i = 0; i < marks; ++i) EXPECT_EQ(timeline.mark(), i);
    cuda::end_range();
    const std::vector<double> seconds = timeline.take();
    ASSERT_EQ(int64_t(seconds.size()), marks);
    EXPECT_EQ(seconds.front(), 0);
    EXPECT_TRUE(std::is_sorted(seconds.begin(), seconds.end()));
  }
}

TEST(CudaDevice, OpensALibraryWhereverItIs) {
  const cuda::Library found = cuda::open_library("libm.so.6", "OF_TEST_LIBRARY");
  ASSERT_NE(found.handle, nullptr);
  EXPECT_NE(found.path.find("/libm"), std::string::npos) << found.path;
  EXPECT_EQ(cuda::open_library("libno_such_thing.so.1", "OF_TEST_LIBRARY").handle, nullptr);

  // A folder or a file that the user names comes first; what cannot be loaded is passed over.
  const TemporaryDirectory folder;
  const std::string copy = folder / "libm.so.6";
  std::filesystem::copy_file(found.path, copy);
  for (const std::string& place : {folder.path(), copy}) {
    ASSERT_EQ(setenv("OF_TEST_LIBRARY", place.c_str(), 1), 0);
    EXPECT_EQ(cuda::open_library("libm.so.6", "OF_TEST_LIBRARY").path, copy);
  }
  std::filesystem::create_directory(folder / "empty");
  std::ofstream(folder / "empty/libm.so.6");
  ASSERT_EQ(setenv("OF_TEST_LIBRARY", (folder / "empty").c_str(), 1), 0);
  EXPECT_EQ(cuda::open_library("libm.so.6", "OF_TEST_LIBRARY").path, found.path);
  unsetenv("OF_TEST_LIBRARY");
}

TEST(CudaDevice, FindsAFunctionOfALibrary) {
  const cuda::Library library = cuda::open_library("libm.so.6", "OF_TEST_LIBRARY");
  double (*root)(double) = nullptr;
  cuda::find_function(library, "sqrt", root);
  EXPECT_EQ(root(9), 3);
  EXPECT_THROW(cuda::find_function(library, "no_such_function", root), Error);
}

TEST(CudaDevice, TakesAPeersKernelsWhereTheEnvironmentAsks) {
  const auto asked = [](const char* value, bool (*found)()) {
    EXPECT_EQ(setenv("OF_TEST_CHOICE", value, 1), 0);
    return cuda::peer_asked("OF_TEST_CHOICE", "peer", found, "libpeer", "OF_TEST_LIBRARY");
  };
  const auto yes = [] { return true; };
  const auto no = [] { return false; };
  EXPECT_TRUE(asked("peer", yes));
  EXPECT_FALSE(asked("own", yes) || asked("", yes) || asked("own", no));
  EXPECT_THROW(asked("peer", no), UserError);
  EXPECT_THROW(asked("Peer", yes), UserError);
  unsetenv("OF_TEST_CHOICE");
}

}  // namespace
}  // namespace orthofed::test

#endif
