// SPDX-License-Identifier: Apache-2.0
//
// Which tensors of a checkpoint become int8.
#pragma once

#include <regex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace int8q::checkpoint {

// Output heads, with what hangs below them: stay in floating point by default, and are named to the loader even where the
// file lacks them, since they are tied to an embedding, or new when a checkpoint is fine-tuned. cls is BERT's pre-training
// heads, vocab_* DistilBERT's, score the classifier of decoders, output_layer ChatGLM's head, proj_out Whisper's,
// output_projection BioGPT's.
#define INT8Q_OUTPUT_HEADS                                                                \
  "lm_head|embed_out|cls|classifier|pre_classifier|classification_head|score|qa_outputs|" \
  "generator_lm_head|generator_predictions|discriminator_predictions|predictions|"        \
  "lm_predictions|vocab_transform|vocab_projector|lm_loss|pred_layer|sop_classifier|"     \
  "logits_proj|sequence_summary|output_layer|output_projection|proj_out"

// Heads whose names are others' body: named to the loader where the file has nothing below them (ModernBERT's tied
// decoder), RWKV's head.
#define INT8Q_OUTPUT_HEADS_ELSEWHERE "decoder|head"

inline constexpr const char* kDefaultInclude[] = {R"(\.weight$)"};

// What stays in floating point by default, by tensor name. Broad on purpose: an embedding in int8 does not load at all,
// a small projection left in float costs only bytes, and quantization_config names whatever was left out.
inline constexpr const char* kDefaultExclude[] = {
    // Embeddings: embed_tokens (Llama, OPT, BART, T5), embed_positions, embed_in (NeoX), word_embeddings (BERT, Bloom,
    // Falcon), position_embeddings, token_type_embeddings, embeddings.*, tok_embeddings (InternLM2).
    R"([Ee]mbed)",
    // Embeddings of other names: GPT-2's wte and wpe, T5's and BART's shared, T5's position bias, XLNet, RWKV.
    R"((^|\.)(wte|wpe|shared|relative_attention_bias|seg_embed|emb|\w+_emb)\.weight$)",
    // Norms are 1-D as a rule; a 2-D one is no product's weight either.
    R"(([Nn]orm\w*|(^|\.)ln(_\w+)?)\.weight$)",
    R"((^|\.)()" INT8Q_OUTPUT_HEADS R"()\.)",
    R"(^(model\.)?output\.weight$)",  // InternLM2's head, a name that BERT uses elsewhere
    R"(^head\.weight$)",              // RWKV's
    // Mixtures of experts: routers, and experts, which transformers holds as bare parameters.
    R"((^|\.)(experts|router|gate)\.)",
    // transformers keeps T5's wo in fp32 (_keep_in_fp32_modules): it overflows fp16.
    R"(DenseReluDense\.wo\.weight$)",
};

// ECMAScript regexes searched in names. INVALID_ARGUMENT names a bad pattern.
class Patterns {
 public:
  // argument is the option's name for messages.
  Patterns(std::span<const char* const> patterns, const char* argument);

  // UNSUPPORTED for a name of more than 1024 bytes: std::regex recurses once a byte.
  bool found_in(const std::string& name) const;

 private:
  struct Pattern {
    std::string text;
    std::regex regex;
  };
  std::vector<Pattern> patterns_;
  const char* argument_;
};

// "P." of "P.weight", "" of "weight"; false if the name is neither.
bool module_prefix(std::string_view weight_name, std::string_view* prefix);

}  // namespace int8q::checkpoint
