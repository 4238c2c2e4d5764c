#include "tests/support/shared_memory.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::testing {

Descriptor NewMemory(size_t bytes, int seals, unsigned flags) {
  Descriptor memory(memfd_create("test", flags | MFD_CLOEXEC));
  if (!memory.valid() ||
      ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0 ||
      (seals != 0 && fcntl(memory.get(), F_ADD_SEALS, seals) != 0)) {
    std::cerr << "no memfd: " << std::strerror(errno) << std::endl;
    return Descriptor();
  }
  return memory;
}

MappedMemory::MappedMemory(size_t bytes) : fd_(NewMemory(bytes)) {
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (data == MAP_FAILED) std::abort();
  bytes_ = {static_cast<std::byte*>(data), bytes};
}

MappedMemory::~MappedMemory() { munmap(bytes_.data(), bytes_.size()); }

RegionClient::RegionClient(const std::string& address)
    : socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  const std::string path(absl::StripPrefix(address, "unix:"));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, path.data(), path.size());
  if (connect(socket_.get(), reinterpret_cast<const sockaddr*>(&name),
              sizeof(name)) != 0) {
    ADD_FAILURE() << "cannot connect to " << path;
    socket_ = Descriptor();
  }
}

std::optional<v1::SharedMemoryResponse> RegionClient::Register(
    const std::vector<int>& descriptors, const std::string& token) {
  v1::SharedMemoryRequest request;
  request.mutable_register_region()->set_token(token);
  return Send(request.SerializeAsString(), descriptors);
}

std::optional<v1::SharedMemoryResponse> RegionClient::Drop(
    const std::string& region) {
  v1::SharedMemoryRequest request;
  request.mutable_drop_region()->set_region(region);
  return Send(request.SerializeAsString());
}

std::optional<v1::SharedMemoryResponse> RegionClient::Send(
    const std::string& bytes, const std::vector<int>& descriptors) {
  if (!Write(bytes, descriptors)) return std::nullopt;
  return Read();
}

bool RegionClient::Write(const std::string& bytes,
                         const std::vector<int>& descriptors) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.data(),
                descriptors.size() * sizeof(int));
  }
  return sendmsg(socket_.get(), &message, MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());
}

std::optional<v1::SharedMemoryResponse> RegionClient::Read() {
  std::array<char, 8192> bytes;
  const ssize_t size = recv(socket_.get(), bytes.data(), bytes.size(), 0);
  if (size <= 0) return std::nullopt;
  v1::SharedMemoryResponse response;
  if (!response.ParseFromArray(bytes.data(), static_cast<int>(size))) {
    ADD_FAILURE() << "no SharedMemoryResponse";
    return std::nullopt;
  }
  return response;
}

std::string RegionClient::Share(const MappedMemory& memory,
                                const std::string& token) {
  const auto response = Register({memory.fd()}, token);
  if (!response || response->code() != 0) {
    ADD_FAILURE() << (response ? response->message() : "the connection ended");
    return "";
  }
  EXPECT_EQ(response->size_bytes(), memory.bytes().size());
  return response->region();
}

bool RegionClient::WaitForEnd() {
  char byte;
  return recv(socket_.get(), &byte, 1, 0) <= 0;
}

}  // namespace attention::testing
