"""The command line: each command parses, calls one library function and prints.

Exit codes: 0 done, 1 the answer is "no" (a check failed), 2 bad input, 130 interrupted. Commands
live in modules of their own, imported only when called, so `sooner --help` is instant.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

COMMANDS = {
    # command: (module, what the list of commands says)
    "demo": ("demo", "See it happen: the real vLLM on this machine's CPU, in three orders."),
    "train": ("train", "Train a ranker on a log of finished requests."),
    "evaluate": ("evaluate", "Judge a ranker on requests it was not trained on."),
    "explain": ("explain", "Say why a ranker scores a prompt as it does, or what it has learned."),
    "compare-rankers": ("compare_rankers", "Train and judge the papers' rankers beside ours, on one log."),
    "score": ("score", "Score prompts from stdin."),
    "collect": ("collect", "Run prompts on a server and record the lengths of its replies."),
    "generate": (
        "generate",
        "Run a file of prompts to a goal: all soonest, a sample, the first N, a budget.",
    ),
    "replay": ("replay", "Drive a server with a workload and measure it from the client's side."),
    "simulate": ("simulate", "Serve a workload on a simulated engine: what would this policy do here?"),
    "sweep": ("sweep", "Simulate policies x loads x seeds in parallel processes."),
    "tune": ("tune", "Find the order that pays on a trace of yours, and the settings for it."),
    "calibrate": ("calibrate", "Fit a simulated engine to runs of the real one."),
    "validate": ("validate", "Judge a simulated engine against a real run."),
    "whatif": ("whatif", "Say what another order would have done with the traffic that was served."),
    "reproduce": ("reproduce", "Run a published result again: ours beside the paper's."),
    "serve": ("serve", "Serve an OpenAI-compatible API in front of any engines, in learned order."),
    "hint": ("hint", "Let another queue execute our order: llm-d, Dynamo, or engines with priorities."),
    "promote": (
        "promote",
        "Let a gateway's shadow act: the second ranker, compared on live traffic.",
    ),
    "watch": ("watch", "Show what the vLLM plugin or a gateway does now, from outside."),
    "check": ("check", "Look at all that a gateway's settings name, without serving."),
    "doctor": ("doctor", "Say what is installed here, what is missing and what is slow."),
    "keys": ("keys", "Make, list and revoke the API keys of a gateway."),
    "export": ("export", "Write a gateway's journal as JSON lines, for training."),
    "report": ("report", "Compare runs of replay: a table, JSON, and one HTML page."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted, without importing anything."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sooner.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=LazyGroup, context_settings=_SETTINGS)
@click.version_option(package_name="sooner")
def root() -> None:
    """Make LLM serving answer sooner: learned shortest-first order, with a bound on waiting."""


def main() -> None:
    """Run the command line; errors of ours, and of files, disk and network, are one line and exit code 2."""
    try:
        sys.exit(root(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        click.echo(f"sooner: {_of_the_system(error)}", err=True)
        sys.exit(2)
    except Exception as error:
        from sooner.core import SoonerError  # with it comes NumPy, which `--help` does without

        if not isinstance(error, SoonerError):
            raise
        click.echo(f"sooner: {error}", err=True)
        sys.exit(2)


def _of_the_system(error: OSError) -> str:
    """What a file, disk or network refused, with the path where one is known."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
