"""`outboxd demo`: the main job, for real, in under 30 seconds.

Real processes, real sockets, real files in a temporary directory.
"""

from __future__ import annotations

import signal
from types import FrameType

from outboxd.cli.play import CRASH, DRAIN_TIMEOUT_S, Play
from outboxd.cli.stage import Stage, StageAgent
from outboxd.errors import EX_OK, OutboxdError
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Play it; 0 where nothing was lost."""
    signal.signal(signal.SIGTERM, _interrupt)
    stage = Stage()
    kept = False
    try:
        code = GatewayDemo(stage).play() if arguments.gateway else Demo(stage).play()
        if arguments.keep and code == EX_OK:
            _say_how_to_play(stage)
            kept = True
        return code
    except OSError as error:
        raise OutboxdError(f"the demo could not go on: {error}") from error
    finally:
        if not kept:
            stage.close()


class Demo(Play):
    """One agent, an outage, and a kill in the middle of it."""

    def play(self) -> int:
        """All acts, and the sum at the end."""
        stage, screen = self.stage, self.screen
        stage.start_sandbox()
        screen.tell(f"a sandbox stands in for Komodor: {stage.sandbox_url}")
        agent = stage.add_agent("agent")
        agent.start()
        screen.tell(f"an agent runs, process {agent.pid}")

        self.hand_in(agent, posts=30, batch=20, files=20, emits=2)
        self.wait_until(lambda: self.pending() == 0, "delivered as they come")

        stage.faults(outage=True)
        screen.tell("the endpoint goes down")
        self.hand_in(agent, posts=40, batch=30, files=25, emits=2)
        self.wait_until(lambda: False, "kept in the outbox", timeout_s=0.5)

        producer = self.start_posting(agent, 60)
        self.wait_until(lambda: self.accepted(CRASH) >= 20, "more come in")
        agent.kill()
        screen.tell("the agent is killed with SIGKILL, in the middle of it")
        self.hand_in(agent, files=10, emits=1)
        screen.tell("with no agent, the spool takes what comes")
        agent.start()
        screen.tell(f"the agent starts again, process {agent.pid}")
        producer.join(DRAIN_TIMEOUT_S)
        self.wait_until(lambda: False, "all of it is still there", timeout_s=0.5)

        stage.faults(outage=False)
        screen.tell("the endpoint is back")
        self.wait_until(lambda: self.pending() == 0, "the backlog drains")
        return self.account()


class GatewayDemo(Play):
    """Two hosts without a way out, a gateway, an outage behind it, and its kill."""

    def play(self) -> int:
        """All acts, and the sum at the end."""
        stage, screen = self.stage, self.screen
        stage.start_sandbox()
        screen.tell(f"a sandbox stands in for Komodor: {stage.sandbox_url}")
        gateway = stage.add_gateway()
        gateway.start()
        screen.tell(
            f"a gateway runs, process {gateway.pid}, and takes events at {stage.gateway_url}"
        )
        hosts = [stage.add_host(name) for name in ("host-a", "host-b")]
        for host in hosts:
            host.start()
        screen.tell("two hosts know nothing but the gateway, each with a token of its own")

        for host in hosts:
            self.hand_in(host, posts=30, batch=20, files=10)
        self.wait_until(lambda: self.pending() == 0, "delivered over both hops")

        stage.faults(outage=True)
        screen.tell("the endpoint behind the gateway goes down")
        for host in hosts:
            self.hand_in(host, posts=30, batch=20, emits=1)
        self.wait_until(lambda: _are_empty(hosts), "the hosts hand on, the gateway keeps it")

        producers = [self.start_posting(host, 40) for host in hosts]
        self.wait_until(lambda: self.accepted(CRASH) >= 20, "more come in")
        gateway.kill()
        screen.tell("the gateway is killed with SIGKILL, in the middle of it")
        for host in hosts:
            self.hand_in(host, posts=20, files=10)
        for producer in producers:
            producer.join(DRAIN_TIMEOUT_S)
        self.wait_until(lambda: False, "without a gateway the hosts keep it", timeout_s=0.5)
        gateway.start()
        screen.tell(f"the gateway starts again, process {gateway.pid}")
        self.wait_until(lambda: _are_empty(hosts), "the hosts hand on what they kept")

        stage.faults(outage=False)
        screen.tell("the endpoint is back")
        self.wait_until(lambda: self.pending() == 0, "the gateway's backlog drains")
        return self.account()


def _are_empty(agents: list[StageAgent]) -> bool:
    return all(agent.pending_count() == 0 for agent in agents)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_how_to_play(stage: Stage) -> None:
    agent = stage.agents[-1]
    config = f"-c {agent.config_path}"
    sandbox = stage.sandbox_url
    pages = "\n".join(f"  page of {each.name:<13} {each.page_url}" for each in stage.agents)
    again = "\n".join(
        f"  kill {each.name:<16} kill -9 {each.pid}\n"
        f"  start it again        KOMODOR_API_KEY={each.api_key} outboxd run -c {each.config_path}"
        for each in stage.agents
    )
    pids = " ".join(str(each.pid) for each in stage.agents)
    print(
        f"""All of it goes on running. To play with it:

{pages}
  what Komodor has      {sandbox}/
  hand in an event      outboxd emit deploy 'v2 is out' --cluster A {config}
  or with curl          curl --unix-socket {agent.socket_path} \\
                          http://localhost/mgmt/v1/events \\
                          -d '{{"eventType": "deploy", "summary": "v2 is out"}}'
  how it stands         outboxd status {config}
  what there is         outboxd events {config}
  take it down          curl {sandbox}/sandbox/faults -d '{{"outage": true}}'
  and back              curl {sandbox}/sandbox/faults -d '{{"outage": false}}'
{again}

To stop them:

  kill {pids} {stage.sandbox_pid}; rm -r {stage.directory}
"""
    )
