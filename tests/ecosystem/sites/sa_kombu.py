"""kombu's transport through tables, with SQLAlchemy."""

from typing import Any
from uuid import uuid4

from kombu import Connection, Consumer, Exchange, Producer, Queue

from tests.ecosystem.script import url

address = "sqla+" + url().render_as_string(hide_password=False)


def work() -> dict[str, Any]:
    """Send messages, receive them in another connection, acknowledge some, and receive the others again."""
    name = f"q{uuid4().hex}"
    queue = Queue(name, Exchange(name, type="direct"), routing_key=name)
    bodies: list[Any] = []
    with Connection(address) as connection, connection.channel() as channel:
        producer = Producer(channel, exchange=queue.exchange, routing_key=name, serializer="json")
        for number in range(3):
            producer.publish({"number": number, "text": "tea é"}, declare=[queue])
    with Connection(address) as connection, connection.channel() as channel:

        def received(body: Any, message: Any) -> None:
            bodies.append([body["number"], body["text"]])
            message.ack()

        with Consumer(channel, queues=[queue], callbacks=[received], accept=["json"]):
            while len(bodies) < 3:
                connection.drain_events(timeout=20)
        left = queue(channel).get() is None
        queue(channel).delete()
    return {"bodies": bodies, "left": left}
