// SPDX-License-Identifier: Apache-2.0
//
// Which tensors of a checkpoint become int8, and why the others do not.
#include <map>

#include "support/checkpoint_calls.h"

namespace int8q::test {
namespace {

std::vector<std::string> chosen_of(const std::vector<std::string>& names, Quantize call = {}) {
  TempFolder folder;
  std::vector<Tensor> tensors;
  for (const std::string& name : names) tensors.push_back(f32_tensor(name, {2, 2}, {1, 2, 3, 4}));
  write_bytes(folder / "x", make_safetensors(tensors));
  call.in = folder / "x";
  call.dry_run = call.null_out = true;
  EXPECT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  return call.chosen();
}

TEST(CheckpointSelection, DefaultsFollowTransformers) {
  const std::vector<std::string> quantized = {"bert.encoder.layer.0.attention.output.dense.weight",
                                              "bert.encoder.layer.0.attention.self.query.weight",
                                              "bert.pooler.dense.weight",
                                              "distilbert.transformer.layer.0.ffn.lin1.weight",
                                              "gpt_neox.layers.0.attention.query_key_value.weight",
                                              "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
                                              "model.decoder.layers.0.fc1.weight",
                                              "model.decoder.layers.0.self_attn.out_proj.weight",
                                              "model.decoder.project_in.weight",
                                              "encoder.block.0.layer.0.SelfAttention.q.weight",
                                              "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                                              "model.encoder.layers.0.encoder_attn.k_proj.weight",
                                              "model.layers.0.mlp.gate_proj.weight",
                                              "model.layers.0.attention.wo.weight",
                                              "model.layers.0.mlp.shared_expert.up_proj.weight",
                                              "transformer.h.0.self_attention.query_key_value.weight",
                                              "transformer.h.0.mlp.dense_h_to_4h.weight",
                                              "transformer.h.0.attn.c_proj.weight",
                                              "model.layers.0.mlp.shared_expert_gate.weight",
                                              "rwkv.blocks.0.attention.key.weight",
                                              "vision.head.mlp.fc1.weight",
                                              "transformer.h.0.attn.q_proj.weight"};
  const std::vector<std::string> kept = {"bert.embeddings.word_embeddings.weight",
                                         "bert.embeddings.position_embeddings.weight",
                                         "bert.embeddings.token_type_embeddings.weight",
                                         "cls.predictions.decoder.weight",
                                         "cls.predictions.transform.dense.weight",
                                         "cls.seq_relationship.weight",
                                         "classifier.weight",
                                         "qa_outputs.weight",
                                         "classifier.out_proj.weight",
                                         "pre_classifier.weight",
                                         "vocab_transform.weight",
                                         "vocab_projector.weight",
                                         "wte.weight",
                                         "transformer.wte.weight",
                                         "transformer.wpe.weight",
                                         "lm_head.weight",
                                         "lm_head.dense.weight",
                                         "gpt_neox.embed_in.weight",
                                         "embed_out.weight",
                                         "model.decoder.embed_tokens.weight",
                                         "model.decoder.embed_positions.weight",
                                         "shared.weight",
                                         "model.shared.weight",
                                         "encoder.embed_tokens.weight",
                                         "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                                         "score.weight",
                                         "encoder.block.0.layer.1.DenseReluDense.wo.weight",
                                         "classification_head.dense.weight",
                                         "model.embed_tokens.weight",
                                         "transformer.word_embeddings.weight",
                                         "transformer.word_embeddings_layernorm.weight",
                                         "model.norm.weight",
                                         "model.layers.0.input_layernorm.weight",
                                         "model.layers.0.ln_1.weight",
                                         "transformer.ln_f.weight",
                                         "encoder.layer.0.LayerNorm.weight",
                                         "model.tok_embeddings.weight",
                                         "output.weight",
                                         "proj_out.weight",
                                         "transformer.output_layer.weight",
                                         "decoder.mask_emb.weight",
                                         "model.layers.0.mlp.experts.3.up_proj.weight",
                                         "model.layers.0.mlp.gate.weight",
                                         "model.layers.0.block_sparse_moe.gate.weight",
                                         "encoder.block.1.layer.1.mlp.router.classifier.weight",
                                         "head.weight",
                                         "output_projection.weight",
                                         "model.layers.0.q_proj.bias",
                                         "model.layers.0.A_log",
                                         "weight"};
  std::vector<std::string> all = quantized, expected = quantized;
  all.insert(all.end(), kept.begin(), kept.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(chosen_of(all), expected);
}

TEST(CheckpointSelection, LeavesWhatMultiheadAttentionReads) {
  EXPECT_EQ(chosen_of({"a.out_proj.weight", "a.in_proj_weight", "b.out_proj.weight"}),
            (std::vector<std::string>{"b.out_proj.weight"}));
}

TEST(CheckpointSelection, TakesOnlyFloatMatrices) {
  TempFolder folder;
  write_bytes(folder / "x", make_safetensors({f32_tensor("one.weight", {4}, {1, 2, 3, 4}),
                                              f32_tensor("three.weight", {1, 2, 2}, {1, 2, 3, 4}),
                                              {"f64.weight", "F64", {1, 1}, std::string(8, '\0')},
                                              {"i8.weight", "I8", {1, 1}, "x"},
                                              {"f8.weight", "F8_E4M3", {1, 1}, "x"},
                                              {"f16.weight", "F16", {1, 1}, "xx"},
                                              {"bf16.weight", "BF16", {1, 1}, "xx"},
                                              f32_tensor("f32.weight", {1, 1}, {1})}));
  Quantize call{.in = folder / "x", .dry_run = true, .null_out = true};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(call.chosen(), (std::vector<std::string>{"bf16.weight", "f16.weight", "f32.weight"}));
}

TEST(CheckpointSelection, SaysWhyATensorIsCopied) {
  const std::string bytes(16, '\0');
  TempFolder folder;
  write_bytes(folder / "x", make_safetensors({{"a.weight", "F32", {2, 2}, bytes},
                                              {"b.weight", "I32", {2, 2}, bytes},
                                              {"c.weight", "F32", {4}, bytes},
                                              {"d.bias", "F32", {2, 2}, bytes},
                                              {"e.weight", "F32", {2, 2}, bytes},
                                              {"a.embed.weight", "F32", {2, 2}, bytes}}));
  Quantize call{.in = folder / "x", .dry_run = true, .null_out = true, .include = {R"(^[abcd]\.)"}, .use_include = true};
  ASSERT_EQ(call.run(), INT8Q_OK) << int8q_last_error();
  std::map<std::string, int32_t> actions;
  for (const Event& e : call.events) actions[e.tensor] = e.action;
  const std::map<std::string, int32_t> expected = {
      {"a.weight", INT8Q_TENSOR_QUANTIZE},     {"b.weight", INT8Q_TENSOR_COPY_DTYPE},
      {"c.weight", INT8Q_TENSOR_COPY_SHAPE},   {"d.bias", INT8Q_TENSOR_COPY_NAME},
      {"e.weight", INT8Q_TENSOR_COPY_INCLUDE}, {"a.embed.weight", INT8Q_TENSOR_COPY_EXCLUDE}};
  EXPECT_EQ(actions, expected);
}

TEST(CheckpointSelection, PatternsReplaceTheDefaults) {
  const std::vector<std::string> names = {"a.weight", "b.weight", "lm_head.weight", "c.kernel"};
  using Names = std::vector<std::string>;
  EXPECT_EQ(chosen_of(names), (Names{"a.weight", "b.weight"}));
  EXPECT_EQ(chosen_of(names, {.exclude = {"^b"}, .use_exclude = true}), (Names{"a.weight", "lm_head.weight"}));
  EXPECT_EQ(chosen_of(names, {.use_exclude = true}), (Names{"a.weight", "b.weight", "lm_head.weight"}));
  EXPECT_EQ(chosen_of(names, {.include = {"^[ac]\\."}, .use_include = true}), (Names{"a.weight"}));
  EXPECT_EQ(chosen_of(names, {.use_include = true}), Names{});
  EXPECT_EQ(chosen_of(names, {.include = {"^a", "^lm"}, .exclude = {"x"}, .use_include = true, .use_exclude = true}),
            (Names{"a.weight", "lm_head.weight"}));
}

}  // namespace
}  // namespace int8q::test
