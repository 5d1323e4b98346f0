"""Small models in the forms in which the large ones are published."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    MobileViTConfig,
    MobileViTForImageClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

NAME = "autoglm-phone-9b-gcma"
WIDTH, IMAGE, AUDIO = 64, 24, 128
# The special tokens of GLM-4-9B, in its order: images and videos have frames, nothing has a place of its own.
GLM_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
NEW_TOKENS = ("<|image|>", "<|begin_of_audio|>", "<|audio|>", "<|end_of_audio|>")
TEMPLATE = (
    "[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def loud(model: Any) -> Any:
    """Give every matrix values that make a difference."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15, generator=generator)
    return model


def save_tokenizer(folder: Path) -> Tokenizer:
    """Write a byte-level BPE in the form of GLM-4's: its special tokens, and the template in tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["Open the camera, please. The camera is open.", "你是手机助手。"], trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in GLM_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def save_decoder(folder: Path, spare: int = 200) -> None:
    """Write a small GLM in several shards, as the large one is published, with `spare` rows behind its vocabulary."""
    folder.mkdir()
    tokenizer = save_tokenizer(folder)
    stops = [tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    rows = tokenizer.get_vocab_size() + spare
    torch.manual_seed(2)
    config = GlmConfig(
        vocab_size=rows, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=0, eos_token_id=stops,
    )  # fmt: skip
    loud(GlmForCausalLM(config)).save_pretrained(folder, max_shard_size="100KB")


def save_vision(folder: Path) -> None:
    """Write a small MobileViT with a classifier and preprocessing in the words of its time."""
    torch.manual_seed(0)
    sizes = MobileViTConfig(hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, IMAGE], num_labels=5)
    loud(MobileViTForImageClassification(sizes)).save_pretrained(folder)
    published = {"size": 288, "crop_size": 256, "do_center_crop": True, "do_flip_channel_order": True, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(published))


def save_speech(folder: Path) -> None:
    """Write a small Whisper with its own decoder and the vocabulary of that."""
    torch.manual_seed(0)
    whisper = WhisperConfig(
        vocab_size=100, d_model=AUDIO // 4, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    loud(WhisperForConditionalGeneration(whisper)).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    (folder / "vocab.json").write_text('{"of": 0, "another": 1, "tokenizer": 2}')
