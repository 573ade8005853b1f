"""A client made of /openapi.json by openapi-python-client. Arguments: the folder that holds the package
`api_client`, the service, a key, and a target; standard output is the answers as JSON."""

import json
import sys

folder, base, key, target = sys.argv[1:]
sys.path.insert(0, folder)

from api_client import AuthenticatedClient
from api_client.api.events import create_event, get_event
from api_client.api.subscriptions import create_subscription
from api_client.models import EventRequest, RateLimit, SubscriptionRequest

client = AuthenticatedClient(base_url=base, token=key)
made = create_subscription.sync(
    client=client,
    body=SubscriptionRequest.from_dict(
        {
            "target_url": target,
            "event_types": ["invoice.*"],
            "filter": {"data.amount": {"gte": 1}},
            "metadata": {"team": "billing"},
            "rate_limit": {"count": 10, "per_seconds": 1},
            "retry": [1, 60],
        }
    ),
)
assert isinstance(made.rate_limit, RateLimit), made
accepted = create_event.sync(
    client=client,
    body=EventRequest.from_dict(
        {"type": "invoice.paid", "payload": {"amount": 7}, "metadata": {"source": "python"}}
    ),
)
event = get_event.sync(accepted.id, client=client)
told = {
    "count": made.rate_limit.count,
    "clauses": made.filter_.to_dict(),
    "retry": made.retry,
    "metadata": event.metadata,
}
print(json.dumps(told))
