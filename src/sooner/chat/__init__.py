"""A request, read once: its text or messages, the limits it sets, and what else it says of its reply.

Whoever meets a request (a log's row, the plugin, the middleware, the gateway, the simulator) makes a
`ChatRequest` of it. It travels unrendered; `ChatRequest.conversation` gives what a ranker sees.
"""

from sooner.chat.context import EMPTY, Context, estimate_tokens
from sooner.chat.conversation import Conversation, Turn
from sooner.chat.messages import content_text, from_messages, read_messages, role_of, turns
from sooner.chat.request import ChatRequest, Detokenize, of_body, of_messages
from sooner.chat.signals import CHAT_LIMITS, LIMITS, UNSAID, Signals, reply_limit
from sooner.chat.templates import clean, read

__all__ = [
    "CHAT_LIMITS",
    "EMPTY",
    "LIMITS",
    "UNSAID",
    "ChatRequest",
    "Context",
    "Conversation",
    "Detokenize",
    "Signals",
    "Turn",
    "clean",
    "content_text",
    "estimate_tokens",
    "from_messages",
    "of_body",
    "of_messages",
    "read",
    "read_messages",
    "reply_limit",
    "role_of",
    "turns",
]
