// SPDX-License-Identifier: Apache-2.0
//
// int8q_quantize_checkpoint: bitsandbytes' own output byte for byte, folders, progress.
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <random>

#include "core/dtype.h"
#include "support/checkpoint_calls.h"

namespace int8q::test {
namespace {

const std::string kGolden = std::string(INT8Q_SOURCE_DIR) + "/tests/golden/";

// ---- goldens

TEST(Checkpoint, EqualsBitsandbytesByteForByte) {
  TempFolder folder;
  Quantize call{.in = kGolden + "linears_f16.safetensors", .out = folder / "out.safetensors", .use_exclude = true};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(call.chosen().size(), 10u);
  OpenFile ours(folder / "out.safetensors"), theirs(kGolden + "linears_int8.safetensors");
  ASSERT_EQ(ours.names(), theirs.names());
  for (const std::string& name : theirs.names()) {
    const int8q_tensor a = ours.find(name), b = theirs.find(name);
    EXPECT_EQ(a.dtype, b.dtype) << name;
    EXPECT_EQ(std::vector(a.shape, a.shape + a.rank), std::vector(b.shape, b.shape + b.rank)) << name;
    EXPECT_EQ(tensor_bytes(a), tensor_bytes(b)) << name;
  }
  // Even the file is the one that bitsandbytes' state_dict and safetensors' writer make.
  EXPECT_TRUE(read_bytes(folder / "out.safetensors") == read_bytes(kGolden + "linears_int8.safetensors"));
  const int8q_tensor format = ours.find("odd.weight_format");
  EXPECT_EQ(format.dtype, INT8Q_U8);
  EXPECT_EQ(format.rank, 0);
  EXPECT_EQ(tensor_bytes(format), std::string(1, '\0'));
}

TEST(Checkpoint, QuantizesTheTransposeOfConv1d) {
  TempFolder folder;
  write_bytes(folder / "gpt2/model.safetensors", read_bytes(kGolden + "gpt2_f16.safetensors"));
  write_bytes(folder / "gpt2/config.json", R"({"model_type": "gpt2"})");
  for (const std::string& in : {kGolden + "gpt2_f16.safetensors", folder / "gpt2"}) {
    const bool is_folder = in == folder / "gpt2";
    Quantize call{.in = in, .out = folder / (is_folder ? "out" : "out.safetensors")};
    ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
    OpenFile ours(is_folder ? folder / "out/model.safetensors" : folder / "out.safetensors");
    OpenFile theirs(kGolden + "gpt2_int8.safetensors");
    ASSERT_EQ(ours.names(), theirs.names());
    for (const std::string& name : theirs.names()) {
      const int8q_tensor a = ours.find(name), b = theirs.find(name);
      EXPECT_EQ(std::vector(a.shape, a.shape + a.rank), std::vector(b.shape, b.shape + b.rank)) << name;
      EXPECT_EQ(tensor_bytes(a), tensor_bytes(b)) << name;
    }
  }
}

// Qwen and GPT-BigCode: c_attn is a Linear [out, in] with a bias of `out` elements. A square one, or a bias of neither
// size, says nothing.
TEST(Checkpoint, LeavesALinearOfThatNameAlone) {
  struct Case {
    int64_t rows, cols, bias;
    std::vector<float> stats;
  };
  TempFolder folder;
  for (const Case& c : {Case{3, 2, 3, {2, 4, 6}}, Case{2, 2, 2, {2, 4}}, Case{2, 3, 5, {3, 6}}}) {
    std::vector<float> w(static_cast<size_t>(c.rows * c.cols));
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i + 1);
    write_bytes(
        folder / "x",
        make_safetensors({f32_tensor("h.0.attn.c_attn.weight", {c.rows, c.cols}, w),
                          f32_tensor("h.0.attn.c_attn.bias", {c.bias}, std::vector<float>(static_cast<size_t>(c.bias)))}));
    Quantize call{.in = folder / "x", .out = folder / "y", .overwrite = true};
    ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
    EXPECT_EQ(tensor_bytes(OpenFile(folder / "y").find("h.0.attn.c_attn.SCB")), bytes_of(c.stats)) << c.rows;
  }
}

TEST(Checkpoint, WeightsWithoutRowsOrColumnsAreQuantized) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{4, 0}, {0, 4}}) {
    for (const char* name : {"h.0.attn.c_attn", "model.layers.0.mlp.up_proj"}) {
      SCOPED_TRACE(::testing::Message() << name << " " << rows << " x " << cols);
      TempFolder folder;
      const std::string prefix = name;
      write_bytes(folder / "x",
                  make_safetensors({f32_tensor(prefix + ".weight", {rows, cols}, {}),
                                    f32_tensor(prefix + ".bias", {cols}, std::vector<float>(static_cast<size_t>(cols)))}));
      ASSERT_EQ((Quantize{.in = folder / "x", .out = folder / "y"}.run()), INT8Q_OK) << int8q_last_error();
      EXPECT_EQ(OpenFile(folder / "y").find(prefix + ".weight").bytes, 0u);
      EXPECT_EQ(OpenFile(folder / "y").find(prefix + ".weight_format").bytes, 1u);
    }
  }
}

// ---- values

std::string random_weights(int32_t dtype, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(static_cast<size_t>(count * dtype_bytes(dtype)), '\0');
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(static_cast<int64_t>(random() >> 40)) * 0x1p-22f - 2.0f;
    if (dtype == INT8Q_F32) store_element<0>(bytes.data(), i, value);
    if (dtype == INT8Q_F16) store_element<1>(bytes.data(), i, value);
    if (dtype == INT8Q_BF16) store_element<2>(bytes.data(), i, value);
  }
  return bytes;
}

std::string transposed(const std::string& stored, int64_t rows, int64_t cols, size_t element) {
  std::string out(stored.size(), '\0');
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      std::memcpy(&out[static_cast<size_t>(j * rows + i) * element], &stored[static_cast<size_t>(i * cols + j) * element],
                  element);
    }
  }
  return out;
}

// Tensors of several blocks, in rows or columns, are what int8q_quantize_rows makes of them at once.
TEST(Checkpoint, BlocksGiveWhatTheWholeTensorGives) {
  struct Case {
    std::string name, dtype_name;
    int32_t dtype;
    int64_t rows, cols;  // as stored
    bool conv1d;
  };
  const std::vector<Case> cases = {
      {"a.weight", "F32", INT8Q_F32, 40'001, 129, false},               // 20.6 MB: three blocks by bytes
      {"b.weight", "BF16", INT8Q_BF16, 65'539, 3, false},               // two blocks by rows
      {"h.0.attn.c_attn.weight", "F16", INT8Q_F16, 700, 12'011, true},  // 16.8 MB: three strips
      {"h.0.mlp.c_proj.weight", "F32", INT8Q_F32, 3'001, 1'501, true},
  };
  TempFolder folder;
  std::vector<Tensor> tensors;
  for (const Case& c : cases) {
    tensors.push_back({c.name, c.dtype_name, {c.rows, c.cols}, random_weights(c.dtype, c.rows * c.cols, tensors.size())});
  }
  tensors.push_back({"h.0.attn.c_attn.bias", "F16", {12'011}, std::string(24'022, '\0')});
  write_bytes(folder / "x", make_safetensors(tensors));
  const ContextPtr context = make_context(2);
  Quantize call{.in = folder / "x", .out = folder / "y"};
  ASSERT_EQ(call.run(context), INT8Q_OK) << int8q_last_error();
  OpenFile file(folder / "y");
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    const int64_t n = c.conv1d ? c.cols : c.rows, k = c.conv1d ? c.rows : c.cols;
    std::string w = c.conv1d ? transposed(tensors[i].bytes, c.rows, c.cols, static_cast<size_t>(dtype_bytes(c.dtype)))
                             : tensors[i].bytes;
    std::string codes(static_cast<size_t>(n * k), '\x55');
    std::vector<float> stats(static_cast<size_t>(n));
    const int8q_matrix x = matrix(c.dtype, n, k, w.data()), q = matrix(INT8Q_S8, n, k, codes.data());
    ASSERT_EQ(int8q_quantize_rows(context.get(), &x, INT8Q_OUTLIERS_OFF, 0, &q, stats.data(), nullptr, nullptr, nullptr),
              INT8Q_OK)
        << int8q_last_error();
    EXPECT_TRUE(tensor_bytes(file.find(c.name)) == codes) << c.name;
    const std::string prefix = c.name.substr(0, c.name.size() - 6);
    EXPECT_TRUE(tensor_bytes(file.find(prefix + "SCB")) == bytes_of(stats)) << c.name;
  }
}

TEST(Checkpoint, EmptyAndBareTensors) {
  TempFolder folder;
  write_bytes(folder / "x", make_safetensors({f32_tensor("weight", {1, 2}, {0, -3}), f32_tensor("n0.weight", {0, 5}, {}),
                                              f32_tensor("k0.weight", {3, 0}, {}), f32_tensor("none", {0}, {})}));
  Quantize call{.in = folder / "x", .out = folder / "y", .include = {"weight$"}, .use_include = true};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  OpenFile file(folder / "y");
  EXPECT_EQ(tensor_bytes(file.find("weight")), std::string("\0\x81", 2));
  EXPECT_EQ(tensor_bytes(file.find("SCB")), bytes_of<float>({3}));
  EXPECT_EQ(file.find("n0.SCB").bytes, 0u);
  EXPECT_EQ(tensor_bytes(file.find("k0.SCB")), bytes_of<float>({0, 0, 0}));
  EXPECT_EQ(file.count(), 10);
  for (const char* name : {"weight", "n0.weight", "k0.weight", "none"}) {
    EXPECT_TRUE(std::any_of(call.events.begin(), call.events.end(), [&](const Event& e) {
      return e.phase == INT8Q_PHASE_WRITE && e.tensor == name;
    })) << name;
  }
}

TEST(Checkpoint, ItsOutputMakesTheSameLinear) {
  TempFolder folder;
  const std::string in = kGolden + "linears_f16.safetensors";
  Quantize call{.in = in, .out = folder / "y", .use_exclude = true};
  const ContextPtr context = make_context(2);
  ASSERT_EQ(call.run(context), INT8Q_OK) << int8q_last_error();
  OpenFile source(in), file(folder / "y");
  const int8q_tensor w16 = source.find("normal.weight"), w8 = file.find("normal.weight"), scb = file.find("normal.SCB");
  const int64_t n = w8.shape[0], k = w8.shape[1];
  std::vector<float> stats(static_cast<size_t>(n));
  std::memcpy(stats.data(), scb.data, scb.bytes);
  const int8q_matrix float_weight = matrix(INT8Q_F16, n, k, const_cast<void*>(w16.data));
  const int8q_matrix codes = matrix(INT8Q_S8, n, k, const_cast<void*>(w8.data));
  int8q_linear *from_float = nullptr, *from_file = nullptr;
  ASSERT_EQ(int8q_create_linear(context.get(), &float_weight, nullptr, nullptr, nullptr, &from_float), INT8Q_OK);
  ASSERT_EQ(int8q_create_linear(context.get(), &codes, stats.data(), nullptr, nullptr, &from_file), INT8Q_OK)
      << int8q_last_error();
  std::vector<float> x(static_cast<size_t>(3 * k)), a(static_cast<size_t>(3 * n), 1), b(static_cast<size_t>(3 * n), 2);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 23) * 0.5f - 5.5f;
  uint64_t bytes = 0;
  ASSERT_EQ(int8q_query_workspace(context.get(), from_file, INT8Q_FORWARD, 3, 0, &bytes), INT8Q_OK);
  void* workspace = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  const int8q_matrix mx = matrix(INT8Q_F32, 3, k, x.data());
  const int8q_matrix ma = matrix(INT8Q_F32, 3, n, a.data()), mb = matrix(INT8Q_F32, 3, n, b.data());
  EXPECT_EQ(int8q_forward(context.get(), from_float, &mx, 0, &ma, workspace, bytes), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(int8q_forward(context.get(), from_file, &mx, 0, &mb, workspace, bytes), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(bytes_of(a), bytes_of(b));
  EXPECT_NE(a[0], 1.0f);
  std::free(workspace);
  int8q_destroy_linear(from_float);
  int8q_destroy_linear(from_file);
}

// ---- folders

TEST(Checkpoint, ConvertsAFolder) {
  TempFolder folder;
  write_sharded_model(folder / "in");
  Quantize call{.in = folder / "in/", .out = folder / "out/", .threshold = 4.5f};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(tree(folder / "out"),
            (std::vector<std::string>{"1_Pooling", "1_Pooling/config.json", "2_Dense", "2_Dense/pytorch_model.bin",
                                      "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                      "model.safetensors.index.json", "tokenizer.json"}));
  EXPECT_EQ(tree(folder.path()).size(), 2 + tree(folder / "in").size() + 9);  // nothing beside them
  EXPECT_EQ(read_bytes(folder / "out/tokenizer.json"), "{\"any\": \"text\"}");

  const std::string config_before = read_bytes(folder / "in/config.json"),
                    config_text = read_bytes(folder / "out/config.json");
  EXPECT_TRUE(config_text.starts_with(config_before.substr(0, config_before.size() - 1) + ",")) << config_text;
  const auto config = nlohmann::json::parse(config_text);
  EXPECT_EQ(config["model_type"], "llama");
  const auto& quantization = config["quantization_config"];
  EXPECT_EQ(quantization.size(), 13u);
  EXPECT_EQ(quantization["quant_method"], "bitsandbytes");
  EXPECT_EQ(quantization["load_in_8bit"], true);
  EXPECT_EQ(quantization["llm_int8_threshold"], 4.5);
  const std::vector<std::string> skipped = quantization["llm_int8_skip_modules"];
  for (const char* module : {"model.embed_tokens", "lm_head", "score"}) {
    EXPECT_EQ(std::count(skipped.begin(), skipped.end(), module), 1) << module;
  }
  EXPECT_EQ(std::count(skipped.begin(), skipped.end(), "model.layers.0.q_proj"), 0);

  const auto index = nlohmann::json::parse(read_bytes(folder / "out/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_parameters"], 1256);
  uint64_t total = 0, tensors = 0;
  for (const char* shard : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    OpenFile file(folder / ("out/" + std::string(shard)));
    for (const std::string& name : file.names()) {
      EXPECT_EQ(index["weight_map"][name], shard);
      total += file.find(name).bytes;
      ++tensors;
    }
  }
  EXPECT_EQ(index["weight_map"].size(), tensors);
  EXPECT_EQ(tensors, 5u + 2 * 2);
  EXPECT_EQ(index["metadata"]["total_size"], total);
  OpenFile second(folder / "out/model-00002-of-00002.safetensors");
  EXPECT_EQ(tensor_bytes(second.find("model.layers.0.up_proj.bias")), bytes_of<float>({1, 2, 3, 4}));
}

TEST(Checkpoint, AHeadThatIsQuantizedIsNotSkipped) {
  TempFolder folder;
  write_bytes(folder / "in/model.safetensors", make_safetensors({f32_tensor("lm_head.weight", {1, 1}, {1})}));
  write_bytes(folder / "in/config.json", "{}");
  Quantize call{.in = folder / "in", .out = folder / "out", .use_exclude = true};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  const auto config = nlohmann::json::parse(read_bytes(folder / "out/config.json"));
  EXPECT_TRUE(config["quantization_config"]["llm_int8_threshold"].is_number_float()) << "transformers refuses an integer";
  EXPECT_EQ(config["quantization_config"]["llm_int8_threshold"], 6.0);
  const std::vector<std::string> skipped = config["quantization_config"]["llm_int8_skip_modules"];
  EXPECT_EQ(std::count(skipped.begin(), skipped.end(), "lm_head"), 0);
  EXPECT_EQ(std::count(skipped.begin(), skipped.end(), "score"), 1);
}

std::vector<std::string> skipped_of(const std::string& folder) {
  return nlohmann::json::parse(read_bytes(folder + "/config.json"))["quantization_config"]["llm_int8_skip_modules"];
}

// ModernBERT's head is called decoder and is tied, so the file lacks it; in OPT a decoder is the model.
TEST(Checkpoint, ATiedHeadIsNamedUnlessItsNameIsTheBodys) {
  TempFolder folder;
  for (const char* name : {"model.layers.0.mlp.Wi.weight", "model.decoder.layers.0.fc1.weight"}) {
    write_bytes(folder / "in/model.safetensors", make_safetensors({f32_tensor(name, {1, 1}, {1})}));
    write_bytes(folder / "in/config.json", "{}");
    Quantize call{.in = folder / "in", .out = folder / "out", .overwrite = true};
    ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
    const std::vector<std::string> skipped = skipped_of(folder / "out");
    const bool body = std::string(name).find("decoder") != std::string::npos;
    EXPECT_EQ(std::count(skipped.begin(), skipped.end(), "decoder"), body ? 0 : 1);
    EXPECT_EQ(std::count(skipped.begin(), skipped.end(), "output_projection"), 1);
  }
}

TEST(Checkpoint, RefusesArchitecturesThatDoNotLoad) {
  TempFolder folder;
  write_bytes(folder / "in/model.safetensors", make_safetensors({f32_tensor("a.weight", {1, 1}, {1})}));
  write_bytes(folder / "in/config.json", R"({"model_type": "falcon"})");
  Quantize call{.in = folder / "in", .out = folder / "out"};
  EXPECT_EQ(call.run(), INT8Q_UNSUPPORTED);
  EXPECT_TRUE(message_has("falcon") && message_has("include")) << int8q_last_error();
  call.include = {"weight"};
  call.use_include = true;
  EXPECT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(call.chosen().size(), 1u);
}

mode_t mode_of(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return status.st_mode & 0777;
}

TEST(Checkpoint, LeavesOtherModelsBehindAndKeepsThePermissions) {
  TempFolder folder;
  write_bytes(folder / "in/model.safetensors", make_safetensors({f32_tensor("a.weight", {1, 1}, {1})}));
  for (const char* name : {"tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx", "model.gguf",
                           "consolidated.safetensors", "consolidated.00.pth", "original/params.json", "onnx/model.onnx"}) {
    write_bytes(folder / (std::string("in/") + name), "another model");
  }
  write_bytes(folder / "in/2_Dense/model.safetensors", "a part of this one");
  write_bytes(folder / "in/tokenizer.json", "{}");
  ASSERT_EQ(::chmod((folder / "in/model.safetensors").c_str(), 0600), 0);
  ASSERT_EQ(::chmod((folder / "in/2_Dense/model.safetensors").c_str(), 0440), 0);
  ASSERT_EQ(::chmod((folder / "in/tokenizer.json").c_str(), 0600), 0);
  const mode_t mask = ::umask(022);
  Quantize call{.in = folder / "in", .out = folder / "out"};
  const int32_t status = call.run();
  ::umask(mask);
  ASSERT_EQ(status, INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(tree(folder / "out"),
            (std::vector<std::string>{"2_Dense", "2_Dense/model.safetensors", "model.safetensors", "tokenizer.json"}));
  EXPECT_EQ(mode_of(folder / "out/model.safetensors"), 0600u) << "private weights became readable";
  EXPECT_EQ(mode_of(folder / "out/2_Dense/model.safetensors"), 0640u) << "a copied file is read-only only in its source";
  EXPECT_EQ(mode_of(folder / "out/tokenizer.json"), 0600u) << "a copied file became readable";
}

TEST(Checkpoint, KeepsMetadata) {
  TempFolder folder;
  const auto metadata_of = [&](const std::string& path) {
    const std::string bytes = read_bytes(path);
    uint64_t length;
    std::memcpy(&length, bytes.data(), 8);
    EXPECT_EQ(length % 8, 0u);
    return nlohmann::json::parse(bytes.substr(8, length))["__metadata__"];
  };
  write_bytes(folder / "a", make_safetensors({f32_tensor("a.weight", {1, 1}, {1})}));
  write_bytes(folder / "b", make_safetensors({f32_tensor("a.weight", {1, 1}, {1})}, R"({"format":"mlx","\"x":"\n"})"));
  ASSERT_EQ((Quantize{.in = folder / "a", .out = folder / "a8"}.run()), INT8Q_OK);
  ASSERT_EQ((Quantize{.in = folder / "b", .out = folder / "b8"}.run()), INT8Q_OK);
  EXPECT_EQ(metadata_of(folder / "a8"), nlohmann::json({{"format", "pt"}}));
  EXPECT_EQ(metadata_of(folder / "b8"), nlohmann::json({{"format", "mlx"}, {"\"x", "\n"}}));
}

// ---- progress

TEST(Checkpoint, ReportsProgress) {
  TempFolder folder;
  write_sharded_model(folder / "in");
  Quantize call{.in = folder / "in", .out = folder / "out"};
  bool present = false;
  call.on_event = [&](const Event& e) {
    if (e.phase == INT8Q_PHASE_FINISH) present = std::filesystem::exists(folder / "out/config.json");
    if (e.phase == INT8Q_PHASE_PLAN) {
      EXPECT_EQ(tree(folder.path()).size(), 1 + tree(folder / "in").size()) << "written before the plan";
    }
    return 0;
  };
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  EXPECT_TRUE(present);
  std::vector<std::string> planned;
  uint64_t in = 0, out = 0, last_in = 0, last_out = 0;
  int last_phase = INT8Q_PHASE_PLAN;
  for (const Event& e : call.events) {
    EXPECT_GE(e.phase, last_phase);
    last_phase = e.phase;
    if (e.phase == INT8Q_PHASE_PLAN) {
      planned.push_back(e.tensor);
      in += e.bytes_in;
      out += e.bytes_out;
      EXPECT_EQ(e.total_in + e.total_out, 0u);
      continue;
    }
    EXPECT_EQ(e.total_in, in);
    EXPECT_EQ(e.total_out, out);
    EXPECT_GE(e.bytes_in, last_in);
    EXPECT_GE(e.bytes_out, last_out);
    last_in = e.bytes_in;
    last_out = e.bytes_out;
  }
  EXPECT_EQ(last_phase, INT8Q_PHASE_FINISH);
  EXPECT_EQ(call.events.back().tensor, "");
  EXPECT_EQ(last_in, in);
  EXPECT_EQ(last_out, out);
  EXPECT_EQ(planned.size(), 5u);
  const Event& up = *std::find_if(call.events.begin(), call.events.end(),
                                  [](const Event& e) { return e.tensor == "model.layers.0.up_proj.weight"; });
  EXPECT_EQ(up.file, "model-00002-of-00002.safetensors");
  EXPECT_EQ(up.rows, 40);
  EXPECT_EQ(up.cols, 30);
  EXPECT_EQ(up.dtype, INT8Q_F32);
  EXPECT_EQ(up.bytes_in, 4800u);
  EXPECT_EQ(up.bytes_out, 1200u + 160 + 1);
}

TEST(Checkpoint, ADryRunWritesNothing) {
  TempFolder folder;
  write_sharded_model(folder / "in");
  const auto before = tree(folder.path());
  Quantize call{.in = folder / "in", .out = folder / "out", .dry_run = true};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(call.events.size(), 5u);
  EXPECT_EQ(tree(folder.path()), before);
  call.null_out = true;
  EXPECT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
}

}  // namespace
}  // namespace int8q::test
