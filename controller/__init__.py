"""The controller: plans jobs, keeps the catalog, hands out work items, touches no payload."""
