"""Units and meanings of the figures of a run, for people."""

from lm.generation import diversity

# Name → unit, meaning, for every figure with a fixed name.
FIGURES = {
  'bits_per_byte': (
    'bits per byte',
    'Bits the model needs for a byte of the test documents; lower is better.',
  ),
  'scorer': ('', 'How the bits per byte were computed.'),
  'suffix_bits_per_byte': (
    'bits per byte',
    'Bits for the second half of test windows of 1,024 bytes, given the first.',
  ),
  'suffix_scorer': (
    '',
    'How the suffix figure was computed; none: not at all.',
  ),
  'suffix_standard_error': (
    'bits per byte',
    'Of the suffix figure, over the samples that estimate it.',
  ),
  'suffix_windows': (
    'windows',
    'Of 1,024 bytes, whose second halves these are.',
  ),
  'suffix_bytes': ('bytes', 'Size of these second halves.'),
  'pseudo_bits_per_byte': (
    'bits per byte',
    'Not a likelihood: each token of the second halves given all others; not '
    'to be compared with the figures above.',
  ),
  'perplexity': (
    'per token',
    'Exponential of the mean nats per token; comparable under one tokenizer.',
  ),
  'bytes': ('bytes', 'Size of the text that was scored.'),
  'special_mass': (
    'probability',
    'Mean probability that special tokens lost before scoring text.',
  ),
  'xz_bits_per_byte': ('bits per byte', 'The test text under xz -9.'),
  'xz_given_training_bits_per_byte': (
    'bits per byte',
    'What the test text adds to the training text under xz -9.',
  ),
  'unigram_bits_per_byte': (
    'bits per byte',
    'The test text under token frequencies of the training text.',
  ),
  'loss': ('nats per token', 'Training objective, the mean of its last line.'),
  'tokens': ('tokens', 'Tokens read in training, padding left out.'),
  'positions': ('positions', 'Positions processed in training, with padding.'),
  'loss_tokens': ('tokens', 'Tokens that had to be predicted in training.'),
  'text_loss_tokens': ('tokens', 'Of these, tokens of text.'),
  'flops': (
    'FLOPs',
    'Matrix products that the model needed in training (lm/training/flops.py).',
  ),
  'padding_share': (
    'of 1',
    'Positions without a token, of all that were processed in training.',
  ),
  'epochs': ('epochs', 'Passes over the training data.'),
  'seconds': ('s', 'Time since the start of the run.'),
  'step': ('steps', 'Optimizer steps done.'),
  'validation_loss': (
    'nats per token',
    "The objective's own loss on validation rows, at the last evaluation.",
  ),
  'best_step': ('steps', 'Where the validation loss was lowest.'),
}

# Of samples, and of what the test documents themselves go on with.
FIGURES['samples_count'] = (
  'samples',
  'Test documents that were continued; with few of them the figures are rough.',
)
FIGURES |= {
  f'{whose}_{name}': ('', f'{texts}: {meaning}')
  for whose, texts in (('samples', 'Samples'), ('held_out', 'Held-out text'))
  for name, (_, meaning) in diversity.NAMES.items()
}
