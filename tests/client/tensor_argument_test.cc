#include "client/cpp/cli/tensor_argument.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

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
  // What is in the folder, hidden files too, sorted.
  std::set<std::string> Files() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      names.insert(entry.path().filename());
    }
    return names;
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

TEST_F(TensorArgument, LargeArraysAreMapped) {
  ASSERT_TRUE(WriteTensors({{{Path("a.npy"), ""}, &tensor_}}).ok());
  for (const uint64_t map_from : {0, 8, 9}) {
    const auto input =
        OpenTensorArgument(Path("a.npy"), v1::DATA_TYPE_FLOAT64, map_from);
    ASSERT_TRUE(input.ok()) << input.status();
    EXPECT_EQ(input->type(), v1::DATA_TYPE_FLOAT32);
    EXPECT_THAT(input->span().shape, ElementsAre(1, 2));
    ASSERT_EQ(input->span().bytes.size(), 8u);
    const auto* elements =
        reinterpret_cast<const float*>(input->span().bytes.data());
    EXPECT_EQ(elements[1], 2);
    input->DropPages();
    EXPECT_EQ(elements[0], 1);
    EXPECT_FALSE(input->Shortened());
    // What is read is a copy, what is mapped the file itself.
    std::fstream file(Path("a.npy"),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-4, std::ios::end);
    const float three = 3;
    file.write(reinterpret_cast<const char*>(&three), 4);
    file.close();
    EXPECT_EQ(elements[1], map_from <= 8 ? 3 : 2);
    ASSERT_TRUE(WriteTensors({{{Path("a.npy"), ""}, &tensor_}}).ok());
  }
}

TEST_F(TensorArgument, KnowsWhetherItsFileGotShorter) {
  ASSERT_TRUE(WriteTensors({{{Path("a.npy"), ""}, &tensor_}}).ok());
  const auto input =
      OpenTensorArgument(Path("a.npy"), v1::DATA_TYPE_FLOAT32, 0);
  ASSERT_TRUE(input.ok()) << input.status();
  std::filesystem::resize_file(Path("a.npy"), 130);
  EXPECT_TRUE(input->Shortened());
}

// Others are read, and changed as they have to be.
TEST_F(TensorArgument, ArraysThatChangeAreRead) {
  const auto write = [&](const std::string& header, const std::string& data) {
    std::ofstream file(Path("b.npy"), std::ios::binary);
    file << std::string("\x93NUMPY\x01\x00", 8)
         << static_cast<char>(header.size()) << '\0' << header << data;
  };
  write("{'descr': '>i4', 'fortran_order': False, 'shape': (1,)}",
        std::string("\0\0\0\7", 4));
  auto input = OpenTensorArgument(Path("b.npy"), v1::DATA_TYPE_FLOAT32, 0);
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->span().bytes[0], std::byte{7});
  write("{'descr': '|i1', 'fortran_order': True, 'shape': (2, 2)}",
        std::string("\1\2\3\4", 4));
  input = OpenTensorArgument(Path("b.npy"), v1::DATA_TYPE_FLOAT32, 0);
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->span().bytes[1], std::byte{3});
  write("{'descr': '<u4', 'fortran_order': False, 'shape': (1,)}",
        std::string("\1\0\0\0", 4));
  input = OpenTensorArgument(Path("b.npy"), v1::DATA_TYPE_FLOAT32, 0);
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->type(), v1::DATA_TYPE_INT64);
  write("{'descr': '<f4', 'fortran_order': False, 'shape': (1000,)}", "1234");
  EXPECT_THAT(OpenTensorArgument(Path("b.npy"), v1::DATA_TYPE_FLOAT32, 0)
                  .status()
                  .message(),
              HasSubstr("does not fit the 4 bytes"));
}

TEST_F(TensorArgument, AFileThatGetsShorterEndsTheProcess) {
  std::ofstream(Path("c.npy"), std::ios::binary)
      << std::string("\x93NUMPY\x01\x00", 8) << '\x3b' << '\0'
      << "{'descr': '|i1', 'fortran_order': False, 'shape': (99999,)}"
      << std::string(99999, '\1');
  EXPECT_EXIT(
      {
        const auto input =
            OpenTensorArgument(Path("c.npy"), v1::DATA_TYPE_FLOAT32, 0);
        std::filesystem::resize_file(Path("c.npy"), 100);
        std::exit(static_cast<int>(input->span().bytes.back()));
      },
      ::testing::ExitedWithCode(1), "became shorter while it was read");
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
  EXPECT_EQ(
      WriteTensors({{{Path("no/a.npy"), ""}, &tensor_}}).message(),
      absl::StrCat(Path("no/a.npy"), ": no such folder: '", Path("no"), "'"));
  EXPECT_EQ(WriteTensors({{{Path("a.npy"), ""}, &tensor_},
                          {{Path("a.npy"), ""}, &tensor_}})
                .message(),
            absl::StrCat(Path("a.npy"),
                         ": two tensors would be written to one place"));
  EXPECT_TRUE(Files().empty());
}

TEST_F(TensorArgument, NamesThatNoTensorCanHave) {
  EXPECT_THAT(
      std::string(
          ParseTarget("a.safetensors:__metadata__", "x").status().message()),
      HasSubstr("a.safetensors: got the name __metadata__"));
}

TEST_F(TensorArgument, TargetsKnowWhatTheyCanHold) {
  const auto check = [&](const std::string& name, v1::DataType type) {
    return CheckTarget(*ParseTarget(Path(name), "x"), type);
  };
  EXPECT_FALSE(check("a.npy", v1::DATA_TYPE_BFLOAT16).ok());
  EXPECT_TRUE(check("a.npy", v1::DATA_TYPE_FLOAT32).ok());
  EXPECT_TRUE(check("a.safetensors", v1::DATA_TYPE_BFLOAT16).ok());
  EXPECT_TRUE(Files().empty());
}

TEST_F(TensorArgument, TargetsThatCannotBeWritten) {
  const auto error = [&](const std::string& name) {
    const absl::Status status =
        CheckTarget(*ParseTarget(Path(name), "x"), v1::DATA_TYPE_FLOAT32);
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path(name)));
    return std::string(status.message());
  };
  std::filesystem::create_directory(Path("folder.npy"));
  EXPECT_THAT(error("folder.npy"), HasSubstr("is a folder, wanted a file"));
  EXPECT_THAT(error("no/a.npy"), HasSubstr("no such folder"));
  std::ofstream(Path("file")) << "x";
  EXPECT_THAT(error("file/a.npy"), HasSubstr("Not a directory"));
  std::filesystem::create_symlink("loop.npy", Path("loop.npy"));
  EXPECT_THAT(error("loop.npy"), HasSubstr("Too many levels"));
  std::ofstream(Path("bad.safetensors")) << "bad";
  EXPECT_THAT(error("bad.safetensors"),
              HasSubstr("cannot add to it: not a valid .safetensors: shorter"));
}

TEST_F(TensorArgument, OtherTensorsOfTheFileStay) {
  const Tensor other = Tensor::Of<float>(std::vector<float>{7}, {1});
  const auto target = [&](const std::string& name) {
    return *ParseTarget(Path("x.safetensors:" + name), "");
  };
  ASSERT_TRUE(
      WriteTensors({{target("a"), &tensor_}, {target("b"), &tensor_}}).ok());
  ASSERT_TRUE(
      WriteTensors({{target("b"), &other}, {target("c"), &other}}).ok());
  EXPECT_EQ(Read(Path("x.safetensors:a"))->size(), 2);
  EXPECT_EQ(Read(Path("x.safetensors:b"))->size(), 1);
  EXPECT_EQ(Read(Path("x.safetensors:c"))->size(), 1);
  EXPECT_THAT(Files(), ElementsAre("x.safetensors"));
}

TEST_F(TensorArgument, AnEmptyFileHoldsNothingToKeep) {
  std::ofstream(Path("x.safetensors")).flush();
  const TensorTarget target = *ParseTarget(Path("x.safetensors"), "a");
  EXPECT_TRUE(CheckTarget(target, v1::DATA_TYPE_FLOAT32).ok());
  EXPECT_TRUE(WriteTensors({{target, &tensor_}}).ok());
  EXPECT_TRUE(Read(Path("x.safetensors:a")).ok());
}

TEST_F(TensorArgument, OnePlaceByAnyName) {
  std::ofstream(Path("a.safetensors")).flush();
  std::filesystem::create_symlink("a.safetensors", Path("link.safetensors"));
  const auto same = [&](const std::string& a, const std::string& b) {
    return SamePlace(*ParseTarget(Path(a), "x"), *ParseTarget(Path(b), "x"));
  };
  EXPECT_TRUE(same("a.npy", "./a.npy"));
  EXPECT_FALSE(same("a.npy", "b.npy"));
  EXPECT_TRUE(same("a.safetensors", "link.safetensors"));
  EXPECT_FALSE(same("a.safetensors:p", "link.safetensors:q"));
}

TEST_F(TensorArgument, IfOneFileFailsNoneChanges) {
  ASSERT_TRUE(WriteTensors({{*ParseTarget(Path("a.npy"), ""), &tensor_}}).ok());
  std::ofstream(Path("z.safetensors")) << "bad";
  const Tensor other = Tensor::Of<float>(std::vector<float>{7}, {1});
  EXPECT_FALSE(
      WriteTensors({{*ParseTarget(Path("a.npy"), ""), &other},
                    {*ParseTarget(Path("z.safetensors"), "x"), &other}})
          .ok());
  EXPECT_EQ(Read(Path("a.npy"))->size(), 2);
  EXPECT_THAT(Files(), ElementsAre("a.npy", "z.safetensors"));
}

// Adds many tensors to one file at once, each from a thread of its own.
TEST_F(TensorArgument, NoneIsLostWhereManyAddAtOnce) {
  constexpr int kWriters = 8;
  constexpr int kEach = 5;
  std::vector<std::thread> writers;
  for (int writer = 0; writer < kWriters; ++writer) {
    writers.emplace_back([&, writer] {
      for (int i = 0; i < kEach; ++i) {
        const std::string name = absl::StrCat("t", writer, "_", i);
        EXPECT_TRUE(WriteTensors(
                        {{*ParseTarget(Path("x.safetensors"), name), &tensor_}})
                        .ok());
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  for (int writer = 0; writer < kWriters; ++writer) {
    for (int i = 0; i < kEach; ++i) {
      const std::string name = absl::StrCat("x.safetensors:t", writer, "_", i);
      EXPECT_TRUE(Read(Path(name)).ok()) << name;
    }
  }
}

}  // namespace
}  // namespace attention::cli
