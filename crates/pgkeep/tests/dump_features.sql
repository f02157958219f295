-- As many kinds of objects as pg_dump knows of and a plain server has.
CREATE ROLE dump_owner; CREATE ROLE dump_reader;
COMMENT ON DATABASE origin IS 'the origin';
ALTER DATABASE origin SET work_mem TO '5MB';
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION postgres_fdw; CREATE EXTENSION btree_gist;
CREATE SCHEMA app AUTHORIZATION dump_owner;
CREATE SCHEMA "Odd ""Schema (x)";
COMMENT ON SCHEMA app IS 'it''s an app';
GRANT USAGE ON SCHEMA app TO dump_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO dump_reader;
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE app.pair AS (a int, b text);
CREATE TYPE app.span AS RANGE (subtype = float8);
CREATE COLLATION app.numeric_c (provider = libc, locale = 'C');
CREATE FUNCTION app.twice(x int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT x * 2 $$;
CREATE PROCEDURE app.nothing() LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE AGGREGATE app.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE OPERATOR app.|+| (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl);
CREATE CAST (app.pair AS text) WITH INOUT;
CREATE TEXT SEARCH CONFIGURATION app.plain (COPY = simple);
CREATE SEQUENCE app.lonely START 7 INCREMENT 3; SELECT nextval('app.lonely');
CREATE TABLE app.people (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name citext NOT NULL UNIQUE, born date, mood app.mood DEFAULT 'ok',
  extra hstore, twice int GENERATED ALWAYS AS (app.twice(id)) STORED, amount app.positive, code text COLLATE app.numeric_c,
  gone int, "Odd ""Column" float8);
ALTER TABLE app.people DROP COLUMN gone;
ALTER TABLE app.people OWNER TO dump_owner;
INSERT INTO app.people (name, born, extra, amount, code, "Odd ""Column")
  SELECT 'name ' || g, date '1970-01-01' + g, hstore('k', g::text), g, E'tab\t, line\n, back\\slash ' || g,
    CASE g % 3 WHEN 0 THEN 'NaN' WHEN 1 THEN g / 3.0 END FROM generate_series(1, 500) g;
CREATE TABLE app.orders (id bigserial PRIMARY KEY, person int REFERENCES app.people, during tsrange, what jsonb,
  EXCLUDE USING gist (person WITH =, during WITH &&));
INSERT INTO app.orders (person, during, what)
  SELECT g, tsrange(timestamp '2020-01-01' + g * interval '1 day', NULL), jsonb_build_object('n', g) FROM generate_series(1, 300) g;
CREATE INDEX orders_what ON app.orders USING gin (what);
CREATE INDEX people_expr ON app.people (lower(code)) INCLUDE (born) WHERE amount > 10;
CREATE STATISTICS app.people_stats ON born, mood FROM app.people;
COMMENT ON COLUMN app.people.name IS 'the name'; COMMENT ON INDEX app.people_expr IS 'an index';
GRANT SELECT (id, name), UPDATE (name) ON app.people TO dump_reader;
REVOKE ALL ON app.orders FROM dump_reader; GRANT SELECT ON app.orders TO dump_reader WITH GRANT OPTION;
CREATE TABLE app.events (at timestamptz NOT NULL, what text, CONSTRAINT long CHECK (length(what) < 100)) PARTITION BY RANGE (at);
CREATE TABLE app.events_2020 PARTITION OF app.events FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2021-01-01 00:00+00');
CREATE TABLE app.events_2021 PARTITION OF app.events FOR VALUES FROM ('2021-01-01 00:00+00') TO ('2022-01-01 00:00+00') PARTITION BY HASH (what);
CREATE TABLE app.events_2021_0 PARTITION OF app.events_2021 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE app.events_2021_1 PARTITION OF app.events_2021 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE app.events_rest PARTITION OF app.events DEFAULT;
CREATE INDEX events_at ON app.events (at);
INSERT INTO app.events SELECT timestamptz '2019-06-01 00:00+00' + g * interval '1 day', 'event ' || g FROM generate_series(1, 1500) g;
CREATE TABLE app.base (a int, b text, e int DEFAULT 5); CREATE TABLE app.child (c int) INHERITS (app.base);
INSERT INTO app.base VALUES (1, 'base'); INSERT INTO app.child VALUES (2, 'child', 5, 3);
ALTER TABLE app.child ADD COLUMN d int;
CREATE UNLOGGED TABLE app.scratch (a int); INSERT INTO app.scratch VALUES (1);
CREATE TABLE app.nothing (); INSERT INTO app.nothing DEFAULT VALUES;
CREATE TABLE app.empty (a int);
CREATE TABLE "Odd ""Schema (x)"."Odd, Table "" FROM stdin;" ("select" int, "a b" text);
INSERT INTO "Odd ""Schema (x)"."Odd, Table "" FROM stdin;" VALUES (1, NULL), (2, ''), (3, '\N'), (4, '\.');
CREATE VIEW app.adults AS SELECT id, name FROM app.people WHERE born < date '1971-01-01' WITH LOCAL CHECK OPTION;
CREATE MATERIALIZED VIEW app.summary AS SELECT mood, count(*) FROM app.people GROUP BY mood;
CREATE UNIQUE INDEX summary_mood ON app.summary (mood);
CREATE MATERIALIZED VIEW app.not_yet AS SELECT 1 AS one WITH NO DATA;
CREATE FUNCTION app.touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.e := 6; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE INSERT ON app.base FOR EACH ROW EXECUTE FUNCTION app.touched();
ALTER TABLE app.base DISABLE TRIGGER touch;
CREATE RULE no_delete AS ON DELETE TO app.child DO INSTEAD NOTHING;
ALTER TABLE app.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON app.orders FOR SELECT TO dump_reader USING (person = 1);
CREATE FUNCTION app.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION app.on_ddl();
CREATE PUBLICATION pub FOR TABLE app.people (id, name) WHERE (id > 10), app.orders;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere');
CREATE USER MAPPING FOR dump_owner SERVER elsewhere OPTIONS (user 'x', password 'secret');
CREATE FOREIGN TABLE app.far (a int OPTIONS (column_name 'b')) SERVER elsewhere;
SELECT lo_from_bytea(4242, decode(repeat('00ff5c0a', 250000), 'hex'));
SELECT lo_create(4243); SELECT lo_from_bytea(4244, 'short');
GRANT SELECT ON LARGE OBJECT 4242 TO dump_reader; COMMENT ON LARGE OBJECT 4243 IS 'empty';
CREATE TABLE app.big (id int, filler text);
INSERT INTO app.big SELECT g, md5(g::text) || repeat('x', g % 50) FROM generate_series(1, 80000) g;
UPDATE app.big SET filler = filler || '.' WHERE id % 7 = 0; DELETE FROM app.big WHERE id % 11 = 0;
ALTER TABLE app.big ADD PRIMARY KEY (id);
