// SPDX-License-Identifier: Apache-2.0
//
// The tests of the CUDA backend through the C boundary. They run on whatever libcuda.so.1 is found: a GPU's, or the stub that
// emulates one; which one is said at the end.
#include <cstdio>

#include "cuda/gpu.h"
#include "support/shapes.h"

namespace {

class SayWhere : public testing::Environment {
 public:
  void TearDown() override {
    const testing::UnitTest& all = *testing::UnitTest::GetInstance();
    const int ran = all.test_to_run_count() - all.skipped_test_count();
    const int8q::cuda::Device& gpu = int8q::test::gpu();
    std::printf("%d tests ran on %s, capability %d.%d, image %s\n", ran, gpu.name.c_str(), gpu.major, gpu.minor,
                gpu.image->name);
    const auto idle_kernels = int8q::test::more_of_driver().stub_idle_kernels;
    if (idle_kernels == nullptr || testing::GTEST_FLAG(filter) != "*" || int8q::test::small_grid()) return;
    // Which kernel a call takes is the host's choice: the tests shall have seen each of them chosen.
    EXPECT_STREQ(idle_kernels(), gpu.cublaslt == nullptr ? "finish_s8" : "");
  }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!testing::GTEST_FLAG(list_tests)) testing::AddGlobalTestEnvironment(new SayWhere);
  return RUN_ALL_TESTS();
}
