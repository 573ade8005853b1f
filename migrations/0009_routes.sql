-- How an event found its targets, so that one can say why it went where it went. Null: the
-- application's subscriptions were asked. Until now it was told by its deliveries alone.
alter table event
    add column route text constraint event_route_known check (route in ('target', 'default', 'one'));
