CREATE ROLE app LOGIN;
CREATE DATABASE shop;
\connect shop
CREATE EXTENSION pg_background_queue;
CREATE SCHEMA shop AUTHORIZATION app;
GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO app;
ALTER ROLE app SET search_path = shop, public;
