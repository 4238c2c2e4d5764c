#include "client/cpp/cli/tensor_argument.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace attention::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TensorArgument : public ::testing::Test {
 protected:
  TensorArgument()
      : folder_(absl::StrCat(::testing::TempDir(), "/tensor_argument_",
                             ::getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~TensorArgument() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const {
    return absl::StrCat(folder_, "/", name);
  }
  static absl::StatusOr<Tensor> Read(const std::string& argument) {
    return ReadTensorArgument(argument, v1::DATA_TYPE_FLOAT32);
  }

  const std::string folder_;
  const std::vector<float> values_ = {1, 2};
  const Tensor tensor_ = Tensor::Of<float>(values_, {1, 2});
};

TEST_F(TensorArgument, Literals) {
  EXPECT_THAT(Read(" [[3]]")->elements<float>(), ElementsAre(3));
  EXPECT_EQ(ReadTensorArgument("[3]", v1::DATA_TYPE_FLOAT64)->type(),
            v1::DATA_TYPE_FLOAT64);
}

TEST_F(TensorArgument, FilesReadBack) {
  const std::vector<float> other_values = {7};
  const Tensor other = Tensor::Of<float>(other_values, {1});
  ASSERT_TRUE(
      WriteTensors(
          {{*ParseTarget(Path("a.npy"), "output"), &tensor_},
           {*ParseTarget(Path("one.safetensors"), "output"), &tensor_},
           {*ParseTarget(Path("two.safetensors"), "output"), &tensor_},
           {*ParseTarget(Path("two.safetensors:x:y"), "output"), &other}})
          .ok());
  EXPECT_THAT(Read(Path("a.npy"))->elements<float>(), ElementsAre(1, 2));
  EXPECT_THAT(Read(Path("one.safetensors"))->elements<float>(),
              ElementsAre(1, 2));
  EXPECT_THAT(Read(Path("two.safetensors:output"))->elements<float>(),
              ElementsAre(1, 2));
  EXPECT_THAT(Read(Path("two.safetensors:x:y"))->elements<float>(),
              ElementsAre(7));
}

TEST_F(TensorArgument, ReadErrorsNameTheFile) {
  EXPECT_THAT(std::string(Read("q.txt").status().message()),
              HasSubstr("got 'q.txt', wanted a literal such as"));
  EXPECT_EQ(Read(Path("no.npy")).status().message(),
            absl::StrCat(Path("no.npy"), ": no such file"));
  std::filesystem::create_directory(Path("folder.npy"));
  EXPECT_EQ(Read(Path("folder.npy")).status().message(),
            absl::StrCat(Path("folder.npy"), ": not a regular file"));
  std::ofstream(Path("bad.safetensors")) << "bad";
  EXPECT_EQ(Read(Path("bad.safetensors:x")).status().message(),
            absl::StrCat(Path("bad.safetensors"),
                         ": not a valid .safetensors: shorter than 8 bytes"));
}

TEST_F(TensorArgument, WriteErrorsNameTheFile) {
  EXPECT_THAT(std::string(ParseTarget("a.txt", "x").status().message()),
              HasSubstr("got 'a.txt', wanted file.npy"));
  EXPECT_EQ(WriteTensors({{{Path("no/a.npy"), ""}, &tensor_}}).message(),
            absl::StrCat(Path("no/a.npy"),
                         ": cannot write: No such file or directory"));
  EXPECT_EQ(WriteTensors({{{Path("a.npy"), ""}, &tensor_},
                          {{Path("a.npy"), ""}, &tensor_}})
                .message(),
            absl::StrCat(Path("a.npy"),
                         ": two tensors would be written to one place"));
  EXPECT_FALSE(std::filesystem::exists(Path("a.npy")));
}

TEST_F(TensorArgument, TargetsKnowWhatTheyCanHold) {
  EXPECT_FALSE(
      CheckTargetType(*ParseTarget("a.npy", "x"), v1::DATA_TYPE_BFLOAT16).ok());
  EXPECT_TRUE(CheckTargetType(*ParseTarget("a.safetensors", "x"),
                              v1::DATA_TYPE_BFLOAT16)
                  .ok());
}

}  // namespace
}  // namespace attention::cli
