"""Options that several verbs have."""

import argparse

from ..layers.bottle2neck import SEMANTICS

__all__ = ['add_checkpoint', 'add_json', 'add_random', 'add_revision']


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint to read, and what its keys and shapes may not tell."""
    parser.add_argument(
        'source', metavar='SOURCE', help='checkpoint file, or folder written by timm or `convert`'
    )
    parser.add_argument(
        '--model', metavar='NAME', help='name of the model, if the shapes do not tell it'
    )
    parser.add_argument(
        '--semantics',
        metavar='NAME',
        help=f'block semantics of the checkpoint, if its keys do not tell: {", ".join(SEMANTICS)}',
    )
    parser.add_argument('--entry', metavar='KEY', help='entry of the file that holds the weights')


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument('--json', action='store_true', help='print JSON')


def add_revision(parser: argparse.ArgumentParser) -> None:
    """Add --revision."""
    parser.add_argument(
        '--revision', metavar='NAME', help='branch, tag or commit of the repository'
    )


def add_random(parser: argparse.ArgumentParser) -> None:
    """Add the model to load, and --random."""
    parser.add_argument('model', metavar='MODEL', help='registered name, folder, or OWNER/NAME')
    parser.add_argument(
        '--random', action='store_true', help='use random weights instead of loading some'
    )
