// Files that are replaced whole or not at all.
//
//   absl::StatusOr<OutputFile> file = OutputFile::Create("o.npy");
//   file->stream() << ...;
//   absl::Status status = file->Finish();        // written, not yet in place
//   if (status.ok()) status = file->Commit();    // in place, in one step
//
// The bytes go to a temporary file in the same folder, which takes the place of
// the old one when it is complete. It has no name until then, where the file
// system can do that (ext4, xfs, btrfs, tmpfs), so that nothing is left behind
// even if the process is killed; elsewhere it is called
// .attention_client.*.tmp. An old file keeps its permissions and, as far as
// this process may, its owner; hard links to it keep the old contents. A
// symbolic link stays, and the file that it names is replaced.
//
// Pipes, terminals and other devices, and what /dev/stdout and its like stand
// for, cannot be replaced: they are written to directly.
#ifndef ATTENTION_CLIENT_CPP_CLI_OUTPUT_FILE_H_
#define ATTENTION_CLIENT_CPP_CLI_OUTPUT_FILE_H_

#include <fstream>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/descriptor.h"

namespace attention::cli {

// What a path leads to.
struct OutputPlace {
  // Links followed; the same for all paths that lead there.
  std::string path;
  // The folder of `path`.
  std::string folder;
  bool exists = false;
  // Whether it is written to directly.
  bool direct = false;
};

// Follows links. Errors, InvalidArgument: the folder does not exist, a folder
// stands there, links lead nowhere.
absl::StatusOr<OutputPlace> FindPlace(const std::string& path);

// Keeps other processes that call this for the same folder waiting until it
// goes out of scope, or this process ends. To read a file, change it and
// replace it, without losing what another puts there meanwhile. Where the
// folder cannot be locked it does nothing.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);

 private:
  Descriptor folder_;
};

class OutputFile {
 public:
  // Whether Create() would work. Changes nothing.
  static absl::Status Check(const OutputPlace& place);

  // Errors, InvalidArgument, say what the system said. `unnamed`: whether to
  // try for a temporary file without a name.
  static absl::StatusOr<OutputFile> Create(const OutputPlace& place,
                                           bool unnamed = true);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  // Without Commit(), all is as it was.
  ~OutputFile();

  std::ostream& stream() { return stream_; }

  // After the last byte; tells whether all have arrived.
  absl::Status Finish();

  // Puts the file in place. Call Finish() before.
  absl::Status Commit();

 private:
  explicit OutputFile(OutputPlace place) : place_(std::move(place)) {}

  bool CreateUnnamed();
  bool CreateNamed();
  absl::Status KeepOwnerAndMode() const;
  // Gives the file without a name one in its folder.
  bool Link(const std::string& name) const;

  OutputPlace place_;
  // The temporary file; none where `place_` is direct.
  Descriptor temporary_;
  // Its name; empty: it has none.
  std::string name_;
  std::ofstream stream_;
};

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_OUTPUT_FILE_H_
