// SPDX-License-Identifier: Apache-2.0
//
// The tests of the CUDA backend through the C boundary. They run on whatever libcuda.so.1 is found: a GPU's, or the stub that
// emulates one; which one is said at the end.
#include <cstdio>

#include "cuda/gpu.h"

namespace {

class SayWhere : public testing::Environment {
 public:
  void TearDown() override {
    const testing::UnitTest& all = *testing::UnitTest::GetInstance();
    const int ran = all.test_to_run_count() - all.skipped_test_count();
    const int8q::cuda::Device& gpu = int8q::test::gpu();
    std::printf("%d tests ran on %s, capability %d.%d, image %s\n", ran, gpu.name.c_str(), gpu.major, gpu.minor,
                gpu.image->name);
  }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!testing::GTEST_FLAG(list_tests)) testing::AddGlobalTestEnvironment(new SayWhere);
  return RUN_ALL_TESTS();
}
