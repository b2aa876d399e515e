// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors_format.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/json_members.h"
#include "core/dtype.h"
#include "core/error.h"

namespace int8q::checkpoint {
namespace {

using ull = unsigned long long;

static_assert(std::endian::native == std::endian::little, "safetensors' length and data are little-endian");

struct DtypeName {
  int32_t dtype;
  const char* name;
};
// In the order of safetensors' own Dtype, by which its writer sorts: element sizes ascend.
constexpr DtypeName kDtypeNames[] = {
    {INT8Q_BOOL, "BOOL"}, {INT8Q_U8, "U8"},   {INT8Q_S8, "I8"},   {INT8Q_F8_E5M2, "F8_E5M2"}, {INT8Q_F8_E4M3, "F8_E4M3"},
    {INT8Q_S16, "I16"},   {INT8Q_U16, "U16"}, {INT8Q_F16, "F16"}, {INT8Q_BF16, "BF16"},       {INT8Q_S32, "I32"},
    {INT8Q_U32, "U32"},   {INT8Q_F32, "F32"}, {INT8Q_F64, "F64"}, {INT8Q_S64, "I64"},         {INT8Q_U64, "U64"},
};

int rank_of_dtype(int32_t dtype) {
  int rank = 0;
  while (kDtypeNames[rank].dtype != dtype) ++rank;
  return rank;
}

// Takes the parser's events by a fixed grammar: nothing but what the format allows passes, so depth is bounded by it, and
// nothing is kept but tensors and metadata.
class HeaderHandler {
 public:
  HeaderHandler(const std::string& path, SafetensorsHeader& header) : path_(path), header_(header) {}

  bool null() { refuse("null"); }
  bool boolean(bool) { refuse("a boolean"); }
  bool number_integer(int64_t value) { refuse(("the number " + std::to_string(value)).c_str()); }
  bool number_float(double, const std::string& text) { refuse(("the number " + shown(text)).c_str()); }
  bool binary(std::vector<std::uint8_t>&) { refuse("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (at_ == At::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX)) refuse(("the number " + std::to_string(value)).c_str());
      if (tensor().shape.size() == kLargestRank) {
        fail(INT8Q_UNSUPPORTED, "%s: tensor \"%s\" has more than %zu dimensions", shown(path_).c_str(), name(),
             kLargestRank);
      }
      tensor().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (at_ != At::kOffsets || offsets_ == 2) refuse(("the number " + std::to_string(value)).c_str());
    (offsets_++ == 0 ? tensor().begin : tensor().end) = value;
    return true;
  }

  bool string(std::string& text) {
    if (at_ == At::kMetadata) {
      header_.metadata[key_] = text;
      return true;
    }
    if (at_ != At::kTensor || member_ != kDtype) refuse("a string");
    tensor().dtype = dtype_of_name(text);
    if (tensor().dtype == INT8Q_DTYPE_INVALID) {
      fail(INT8Q_UNSUPPORTED,
           "%s: tensor \"%s\" has the dtype \"%s\"; expected F64, F32, F16, BF16, F8_E4M3, F8_E5M2, "
           "I64, I32, I16, I8, U64, U32, U16, U8 or BOOL",
           shown(path_).c_str(), name(), shown(text).c_str());
    }
    return true;
  }

  bool start_object(size_t) {
    if (at_ == At::kStart) {
      at_ = At::kTop;
    } else if (at_ == At::kTop && key_ == "__metadata__") {
      if (metadata_seen_) fail(INT8Q_CORRUPT, "%s: header has \"__metadata__\" twice", shown(path_).c_str());
      metadata_seen_ = true;
      at_ = At::kMetadata;
    } else if (at_ == At::kTop) {
      header_.tensors.emplace_back().name = key_;
      members_ = 0;
      at_ = At::kTensor;
    } else {
      refuse("an object");
    }
    return true;
  }

  bool key(std::string& text) {
    if (text.find('\0') != std::string::npos) {
      fail(INT8Q_CORRUPT, "%s: the name \"%s\" contains a NUL byte", shown(path_).c_str(), shown(text).c_str());
    }
    key_ = text;
    if (at_ == At::kMetadata && header_.metadata.count(text) != 0) {
      fail(INT8Q_CORRUPT, "%s: \"__metadata__\" has the key \"%s\" twice", shown(path_).c_str(), shown(text).c_str());
    }
    if (at_ != At::kTensor) return true;
    member_ = text == "dtype" ? kDtype : text == "shape" ? kShape : text == "data_offsets" ? kOffsets : 0;
    if (member_ == 0 || (members_ & member_) != 0) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\" has %s member \"%s\"; expected dtype, shape and data_offsets, once each",
           shown(path_).c_str(), name(), member_ == 0 ? "an unknown" : "a second", shown(text).c_str());
    }
    members_ |= member_;
    return true;
  }

  bool start_array(size_t) {
    if (at_ != At::kTensor || (member_ != kShape && member_ != kOffsets)) refuse("an array");
    at_ = member_ == kShape ? At::kShape : At::kOffsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() {
    if (at_ == At::kOffsets && offsets_ != 2) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\" has %d data_offsets; expected 2", shown(path_).c_str(), name(), offsets_);
    }
    at_ = At::kTensor;
    return true;
  }

  bool end_object() {
    if (at_ == At::kTensor) {
      if (members_ != (kDtype | kShape | kOffsets)) {
        fail(INT8Q_CORRUPT, "%s: tensor \"%s\" lacks %s", shown(path_).c_str(), name(),
             !(members_ & kDtype)   ? "dtype"
             : !(members_ & kShape) ? "shape"
                                    : "data_offsets");
      }
      check_span();
    }
    at_ = at_ == At::kTop ? At::kEnd : At::kTop;
    return true;
  }

  template <class Exception>
  bool parse_error(size_t position, const std::string&, const Exception& error) {
    fail(INT8Q_CORRUPT, "%s: header is not JSON at byte %zu: %s", shown(path_).c_str(), position,
         shown(error.what()).c_str());
  }

 private:
  enum class At { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };
  static constexpr int kDtype = 1, kShape = 2, kOffsets = 4;

  TensorEntry& tensor() { return header_.tensors.back(); }
  const char* name() { return (shown_name_ = shown(tensor().name)).c_str(); }

  [[noreturn]] void refuse(const char* what) {
    static constexpr const char* kExpected[] = {"an object",
                                                "an object for each name",
                                                "a string for each name",
                                                "a string for dtype, an array for the others",
                                                "integers from 0 to 2^63 - 1",
                                                "2 integers from 0 to 2^64 - 1",
                                                "the end"};
    const bool in_tensor = at_ == At::kTensor || at_ == At::kShape || at_ == At::kOffsets;
    fail(INT8Q_CORRUPT, "%s: header has %s at \"%s\"%s%s%s; expected %s", shown(path_).c_str(), what, shown(key_).c_str(),
         in_tensor ? " of tensor \"" : "", in_tensor ? name() : "", in_tensor ? "\"" : "",
         kExpected[static_cast<int>(at_)]);
  }

  void check_span() {
    const TensorEntry& t = tensor();
    uint64_t bytes = static_cast<uint64_t>(dtype_bytes(t.dtype));
    for (const int64_t dimension : t.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes) || bytes > INT64_MAX) {
        fail(INT8Q_CORRUPT, "%s: tensor \"%s\": the product of its shape and element size overflows 63 bits",
             shown(path_).c_str(), name());
      }
    }
    if (t.begin > t.end || t.end - t.begin != bytes) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\": data_offsets are [%llu, %llu]; expected %llu bytes for its shape and dtype",
           shown(path_).c_str(), name(), static_cast<ull>(t.begin), static_cast<ull>(t.end), static_cast<ull>(bytes));
    }
  }

  const std::string& path_;
  SafetensorsHeader& header_;
  At at_ = At::kStart;
  std::string key_;
  std::string shown_name_;
  int member_ = 0;
  int members_ = 0;
  int offsets_ = 0;
  bool metadata_seen_ = false;
};

// Spans in ascending order cover [0, data_bytes) without overlap or gap.
void check_coverage(std::vector<TensorEntry>& tensors, uint64_t data_bytes, const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t covered = 0;
  for (const TensorEntry& t : tensors) {
    if (t.begin != covered) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\" starts at %llu of the data, %s the previous tensor's end %llu",
           shown(path).c_str(), shown(t.name).c_str(), static_cast<ull>(t.begin),
           t.begin < covered ? "an overlap with" : "a gap behind", static_cast<ull>(covered));
    }
    if (t.end > data_bytes) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\" ends at %llu of the data; the file holds %llu: it is truncated",
           shown(path).c_str(), shown(t.name).c_str(), static_cast<ull>(t.end), static_cast<ull>(data_bytes));
    }
    covered = t.end;
  }
  if (covered != data_bytes) {
    fail(INT8Q_CORRUPT, "%s: the tensors cover %llu bytes of the data; the file holds %llu", shown(path).c_str(),
         static_cast<ull>(covered), static_cast<ull>(data_bytes));
  }
}

bool by_name(const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; }

}  // namespace

int32_t dtype_of_name(std::string_view name) {
  for (const DtypeName& d : kDtypeNames) {
    if (name == d.name) return d.dtype;
  }
  return INT8Q_DTYPE_INVALID;
}

const char* name_of_dtype(int32_t dtype) {
  for (const DtypeName& d : kDtypeNames) {
    if (dtype == d.dtype) return d.name;
  }
  return nullptr;
}

SafetensorsHeader parse_header(std::string_view json, uint64_t data_bytes, const std::string& path) {
  if (json.empty() || json.front() != '{') {
    fail(INT8Q_CORRUPT, "%s: the header does not start with '{'; expected a safetensors file", shown(path).c_str());
  }
  const size_t nul = json.find('\0');  // the parser would take it for the end
  if (nul != std::string_view::npos) {
    fail(INT8Q_CORRUPT, "%s: the header has a NUL byte at %zu; expected JSON", shown(path).c_str(), nul);
  }
  SafetensorsHeader header;
  HeaderHandler handler(path, header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &handler);
  check_coverage(header.tensors, data_bytes, path);
  std::sort(header.tensors.begin(), header.tensors.end(), by_name);
  const auto twice = std::adjacent_find(header.tensors.begin(), header.tensors.end(),
                                        [](const TensorEntry& a, const TensorEntry& b) { return a.name == b.name; });
  if (twice != header.tensors.end()) {
    fail(INT8Q_CORRUPT, "%s: tensor \"%s\" is there twice", shown(path).c_str(), shown(twice->name).c_str());
  }
  return header;
}

SafetensorsHeader read_header(const InputFile& file) {
  uint64_t length = 0;
  if (file.bytes() < sizeof length) {
    fail(INT8Q_CORRUPT, "%s: has %llu bytes; expected a safetensors file, which has at least 8", shown(file.path()).c_str(),
         static_cast<ull>(file.bytes()));
  }
  file.read_exactly(&length, sizeof length, 0);
  if (length > kLongestHeader || length > file.bytes() - sizeof length) {
    fail(INT8Q_CORRUPT, "%s: header length is %llu; expected at most %llu and what the file's %llu bytes leave",
         shown(file.path()).c_str(), static_cast<ull>(length), static_cast<ull>(kLongestHeader),
         static_cast<ull>(file.bytes()));
  }
  std::string json(length, '\0');
  file.read_exactly(json.data(), length, sizeof length);
  SafetensorsHeader header = parse_header(json, file.bytes() - sizeof length - length, file.path());
  header.data_begin = sizeof length + length;
  return header;
}

const TensorEntry* find_tensor(const SafetensorsHeader& header, std::string_view name) {
  const auto at = std::lower_bound(header.tensors.begin(), header.tensors.end(), name,
                                   [](const TensorEntry& t, std::string_view wanted) { return t.name < wanted; });
  return at != header.tensors.end() && at->name == name ? &*at : nullptr;
}

uint64_t lay_out(std::vector<TensorEntry>& tensors) {
  std::vector<TensorEntry*> order;
  for (TensorEntry& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->dtype != b->dtype ? rank_of_dtype(a->dtype) > rank_of_dtype(b->dtype) : a->name < b->name;
  });
  uint64_t offset = 0;
  for (TensorEntry* t : order) {
    uint64_t bytes = static_cast<uint64_t>(dtype_bytes(t->dtype));
    for (const int64_t dimension : t->shape) bytes *= static_cast<uint64_t>(dimension);
    t->begin = offset;
    t->end = offset += bytes;
  }
  return offset;
}

std::string make_header(const std::vector<TensorEntry>& tensors, const Metadata& metadata) {
  std::vector<const TensorEntry*> order;
  for (const TensorEntry& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end != b->end ? a->end < b->end : a->name < b->name;
  });
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) json += quoted(key) + ":" + quoted(value) + ",";
    json.back() = '}';
  }
  for (const TensorEntry* t : order) {
    if (json.size() > 1) json += ',';
    json += quoted(t->name) + ":{\"dtype\":\"" + name_of_dtype(t->dtype) + "\",\"shape\":[";
    for (size_t i = 0; i < t->shape.size(); ++i) json += (i == 0 ? "" : ",") + std::to_string(t->shape[i]);
    json += "],\"data_offsets\":[" + std::to_string(t->begin) + "," + std::to_string(t->end) + "]}";
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const uint64_t length = json.size();
  if (length > kLongestHeader) {
    fail(INT8Q_UNSUPPORTED, "the header of the output would have %llu bytes; safetensors allows %llu: split the file",
         static_cast<ull>(length), static_cast<ull>(kLongestHeader));
  }
  json.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
  return json;
}

}  // namespace int8q::checkpoint
