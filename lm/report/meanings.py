"""Units and meanings of the figures of a run, for its report."""

from lm.generation import diversity

# Name of a figure → (unit, meaning), for all figures with fixed names.
FIGURES = {
  'bits_per_byte': (
    'bits per byte',
    'Cross-entropy on the test documents, per byte of text; lower is better.',
  ),
  'scorer': ('', 'Scoring method of the bits per byte.'),
  'suffix_bits_per_byte': (
    'bits per byte',
    'Bits per byte of the second halves of test windows of 1,024 bytes, given '
    'the first halves.',
  ),
  'suffix_scorer': (
    '',
    'Scoring method of the suffix figure; none if there is no such figure.',
  ),
  'suffix_standard_error': (
    'bits per byte',
    'Standard error of the suffix figure, over the samples that estimate it.',
  ),
  'suffix_windows': (
    'windows',
    'Number of test windows of 1,024 bytes for the suffix figure.',
  ),
  'suffix_bytes': ('bytes', 'Size of the second halves that were scored.'),
  'pseudo_bits_per_byte': (
    'bits per byte',
    'Not a likelihood: each token of the second halves is scored given all '
    'others; not comparable with the figures above.',
  ),
  'perplexity': (
    'per token',
    'Exponential of the mean nats per token; only comparable for the same '
    'tokenizer.',
  ),
  'bytes': ('bytes', 'Size of the text that was scored.'),
  'special_mass': (
    'probability',
    'Mean probability of special tokens, which are excluded when scoring text.',
  ),
  'xz_bits_per_byte': ('bits per byte', 'Test text compressed by xz -9.'),
  'xz_given_training_bits_per_byte': (
    'bits per byte',
    'Increase in size when the test text is appended to the training text and '
    'compressed by xz -9.',
  ),
  'unigram_bits_per_byte': (
    'bits per byte',
    'Test text under a unigram model with the token frequencies of the '
    'training text.',
  ),
  'loss': ('nats per token', 'Training loss, mean over the last train line.'),
  'tokens': ('tokens', 'Tokens read in training, without padding.'),
  'positions': (
    'positions',
    'Positions processed in training, including padding.',
  ),
  'loss_tokens': ('tokens', 'Tokens predicted in training.'),
  'text_loss_tokens': ('tokens', 'Tokens of text predicted in training.'),
  'flops': (
    'FLOPs',
    'Model FLOPs of training: its matrix products (lm/training/flops.py).',
  ),
  'padding_share': (
    'share',
    'Share of padding among the positions processed in training.',
  ),
  'epochs': ('epochs', 'Passes over the training data.'),
  'seconds': ('s', 'Time since the start of the run.'),
  'step': ('steps', 'Number of optimizer steps.'),
  'validation_loss': (
    'nats per token',
    'Loss of the objective on validation rows, at the last evaluation.',
  ),
  'best_step': ('steps', 'Step with the lowest validation loss.'),
}

# Figures of samples, and of the true continuations of the test documents.
FIGURES['samples_count'] = (
  'samples',
  'Number of test documents that were continued; figures of few are imprecise.',
)
FIGURES |= {
  f'{prefix}_{name}': ('', f'{texts}: {meaning}')
  for prefix, texts in (('samples', 'Samples'), ('held_out', 'Held-out text'))
  for name, (_, meaning) in diversity.NAMES.items()
}
