"""Pairs of docstrings and code: the worked example, and what is no pair."""

import textwrap

from lm.data.sources import docstrings


def found(code):
  return list(docstrings.pairs(textwrap.dedent(code)))


def test_example_of_the_docstring():
  code = """\
  def double(x):
    \"\"\"Twice x.\"\"\"  # of any number
    return 2 * x
  """
  assert found(code) == [(1, 'Twice x.', 'def double(x):\n  return 2 * x\n')]


def test_methods_are_dedented_and_hold_the_functions_inside_of_them():
  code = """\
  class A:
    @property
    def f(self):
      '''Of A.

      More.
      '''
      def g():
        '''Of f.'''
        return 1

      return g

    def h(self):
      '''Again.'''
      return 2
  """
  (first, said, outer), (second, *rest) = found(code)
  assert (first, second) == (3, 14)
  assert said == 'Of A.\n\nMore.'
  inner = "  def g():\n    '''Of f.'''\n    return 1\n\n"
  assert outer == f'def f(self):\n{inner}  return g\n'
  assert rest == ['Again.', 'def h(self):\n  return 2\n']


def test_lines_are_those_that_python_counts():
  code = "x = 1\n\x0c\ndef f(x):\n  'Said.'\n  y = 1\n  return y\n"
  assert found(code) == [(3, 'Said.', 'def f(x):\n  y = 1\n  return y\n')]


def test_a_string_that_is_less_indented_cannot_be_dedented():
  code = "class A:\n  def f(x):\n    'Said.'\n    return '''a\nb'''\n"
  assert found(code) == []


def test_what_has_no_docstring_or_no_code_of_its_own_is_no_pair():
  assert found('def f():\n  return 1\n') == []
  assert found("def f():\n  'only said'\n") == []
  assert found("def f(): 'one'; return 1\n") == []
  assert found("def f():\n  'one'; return 1\n") == []
  assert found('def f(:\n') == []
  assert found('') == []


def test_no_warning_of_other_peoples_code():
  code = "def f():\n  '''Said.'''\n  return '\\d'\n"
  assert len(found(code)) == 1
