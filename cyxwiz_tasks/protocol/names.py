"""Names on the wire: queues and keys in Redis, headers, tasks and events."""

from __future__ import annotations

INBOX = "cyxwiz.inbox"
REPORTS = "cyxwiz.reports"
COMMANDS = "cyxwiz.commands"
QUERIES = "cyxwiz.queries"
#: messages that nobody here could read, newest first, capped
REJECTED = "cyxwiz.rejected"
#: sorted set: node id -> time of its last beat by Redis' own clock, seconds
BEATS = "cyxwiz.beats"

HEADER = "cyxwiz"
ASSIGNMENT_HEADER = "cyxwiz_assignment"

#: The task that trains a `TrainingJob`.
TRAIN_TASK = "cyxwiz.train"
#: Celery's event type with which a running job shows its progress in Flower.
PROGRESS_EVENT = "task-progress"


def node_queue(node_id: str) -> str:
    """The Celery queue that one node consumes."""
    return f"node.{node_id}"


def control_key(node_id: str) -> str:
    """The list in which one node finds what it is told to do."""
    return f"cyxwiz.control.{node_id}"


def reply_key(request_id: str) -> str:
    """The list on which whoever made a request waits for its answer."""
    return f"cyxwiz.reply.{request_id}"


def telemetry_key(node_id: str) -> str:
    """The text with a node's newest telemetry, as JSON."""
    return f"cyxwiz.telemetry.{node_id}"


def running_key(node_id: str) -> str:
    """The text with what a node runs, as JSON (`Running`); it expires with the node's beats."""
    return f"cyxwiz.running.{node_id}"


def progress_key(job_id: str) -> str:
    """The stream of a job's updates: entries with one field `update`, a JSON object (`Update`)."""
    return f"cyxwiz.progress.{job_id}"


def log_key(job_id: str, rank: int = 0) -> str:
    """The stream with a job's output; of a gang each rank has its own."""
    return f"cyxwiz.log.{job_id}" + (f".{rank}" if rank else "")


def meeting_key(gang_token: int) -> str:
    """The port at which the members of a gang meet, on the node of rank 0."""
    return f"cyxwiz.meeting.{gang_token}"
