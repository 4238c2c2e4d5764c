#include "server/rpc/described_protos.h"

#include <cstdlib>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/details/v1/details.pb.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/duration.pb.h"

namespace attention::server {
namespace {

using ::google::protobuf::DescriptorProto;
using ::google::protobuf::FileDescriptor;
using ::google::protobuf::FileDescriptorProto;

constexpr absl::string_view kDetailsPackage = "attention.details.v1";
constexpr absl::string_view kPublicPackage = "google.rpc";

void RenameTypes(DescriptorProto& message) {
  const std::string prefix = absl::StrCat(".", kDetailsPackage, ".");
  for (auto& field : *message.mutable_field()) {
    absl::string_view type = field.type_name();
    if (absl::ConsumePrefix(&type, prefix)) {
      field.set_type_name(absl::StrCat(".", kPublicPackage, ".", type));
    }
  }
  for (auto& nested : *message.mutable_nested_type()) RenameTypes(nested);
}

// Files under the names that googleapis gives them, with those of their
// messages that our statuses carry.
struct PublicFiles {
  FileDescriptorProto status, error_details;
};

PublicFiles PublicStatusFiles() {
  PublicFiles files;
  for (FileDescriptorProto* file : {&files.status, &files.error_details}) {
    file->set_package(std::string(kPublicPackage));
    file->set_syntax("proto3");
  }
  files.status.set_name("google/rpc/status.proto");
  files.status.add_dependency(
      google::protobuf::Any::descriptor()->file()->name());
  files.error_details.set_name("google/rpc/error_details.proto");
  files.error_details.add_dependency(
      google::protobuf::Duration::descriptor()->file()->name());
  FileDescriptorProto ours;
  details::v1::Status::descriptor()->file()->CopyTo(&ours);
  for (DescriptorProto& message : *ours.mutable_message_type()) {
    RenameTypes(message);
    FileDescriptorProto& file =
        message.name() == "Status" ? files.status : files.error_details;
    *file.add_message_type() = message;
  }
  return files;
}

void AppendWithImports(const FileDescriptor& file,
                       std::unordered_set<const FileDescriptor*>& seen,
                       std::vector<std::string>& result) {
  if (!seen.insert(&file).second) return;
  FileDescriptorProto proto;
  file.CopyTo(&proto);
  // Else tools write fields in JSON otherwise than stubs do.
  file.CopyJsonNameTo(&proto);
  result.push_back(proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) {
    AppendWithImports(*file.dependency(i), seen, result);
  }
}

// The files are part of the program: one that does not fit is a mistake in it.
void Build(const FileDescriptorProto& file,
           google::protobuf::DescriptorPool& pool) {
  if (pool.BuildFile(file) == nullptr) std::abort();
}

}  // namespace

DescribedProtos::DescribedProtos(
    const std::vector<const FileDescriptor*>& files) {
  for (const FileDescriptor* file : files) {
    Add(*file);
    for (int i = 0; i < file->service_count(); ++i) {
      services_.emplace_back(file->service(i)->full_name());
    }
  }
  AddStatusDetails();
}

void DescribedProtos::Add(const FileDescriptor& file) {
  if (pool_.FindFileByName(file.name()) != nullptr) return;
  for (int i = 0; i < file.dependency_count(); ++i) Add(*file.dependency(i));
  FileDescriptorProto proto;
  file.CopyTo(&proto);
  Build(proto, pool_);
}

void DescribedProtos::AddStatusDetails() {
  Add(*google::protobuf::Any::descriptor()->file());
  Add(*google::protobuf::Duration::descriptor()->file());
  const PublicFiles files = PublicStatusFiles();
  Build(files.status, pool_);
  Build(files.error_details, pool_);
}

std::vector<std::string> WithImports(const FileDescriptor& file) {
  std::unordered_set<const FileDescriptor*> seen;
  std::vector<std::string> result;
  AppendWithImports(file, seen, result);
  return result;
}

}  // namespace attention::server
