#!/bin/sh
# Writes the named inputs of the corpus anew, from a real server that psql reaches by its environment (PGHOST, PGUSER,
# PGDATABASE; wal_level = logical, a scratch database): sh tests/fuzz/capture.sh
set -eu
corpus=$(cd "$(dirname "$0")" && pwd)/corpus
sql() { psql -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
# file NAME: standard input as hexadecimal digits becomes bytes.
file() { mkdir -p "$(dirname "$corpus/$1")"; xxd -r -p > "$corpus/$1"; }

sql "DROP PUBLICATION IF EXISTS fuzz; DROP TABLE IF EXISTS t, whole, kinds, other; DROP TYPE IF EXISTS mood;
     CREATE TYPE mood AS ENUM ('ok', 'sad');
     CREATE TABLE t (id int8 PRIMARY KEY, merchant text, amount numeric(18,2), at timestamptz, currency char(3));
     CREATE TABLE whole (id int8 PRIMARY KEY, body text); ALTER TABLE whole REPLICA IDENTITY FULL;
     CREATE TABLE kinds (id int8 PRIMARY KEY, t text, n numeric, tz timestamptz, c char(5), b bool, u uuid, f8 float8, d date,
                         j jsonb, i2 int2, i4 int4, f4 float4, ts timestamp, m mood);
     ALTER TABLE t ALTER merchant SET STORAGE EXTERNAL; ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
     CREATE PUBLICATION fuzz FOR TABLE t, whole, kinds;"
sql "SELECT pg_create_logical_replication_slot('fuzz', 'pgoutput')" > /dev/null

# message NAME TAG BINARY STATEMENTS: the last message with this first byte that the statements lead to.
message() {
    sql "$4"
    sql "SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('fuzz', NULL, NULL, 'proto_version', '1',
             'publication_names', 'fuzz', 'binary', '$3', 'messages', 'true')
         WHERE substr(encode(data, 'escape'), 1, 1) = '$2'" | tail -n 1 | file "pgoutput/$1"
}
row="'m', 12.34, '2026-11-25 10:00:00+00', 'EUR'"
message begin B true "INSERT INTO t VALUES (1, $row)"
message commit C true "INSERT INTO t VALUES (2, $row)"
message relation R true "INSERT INTO t VALUES (3, $row)"
message relation_full R true "INSERT INTO whole VALUES (1, repeat('x', 3000))"
message insert I true "INSERT INTO t VALUES (4, $row)"
message insert_text I false "INSERT INTO t VALUES (5, $row)"
message insert_nulls I true "INSERT INTO t VALUES (6, NULL, NULL, NULL, NULL)"
message insert_not_numbers I true "INSERT INTO kinds (id, n, f8, f4, d, ts, tz) VALUES (1, 'NaN', 'Infinity', 'NaN', 'infinity', '-infinity', 'infinity')"
message insert_every_type I true "INSERT INTO kinds VALUES (2, 'ä€😀', -0.0001, '4713-01-01 BC', 'c', true,
    '00112233-4455-6677-8899-aabbccddeeff', '-0', '4713-01-01 BC', '{\"a\": [1, null]}', -32768, 2147483647, 1e-40, '294276-12-31 23:59:59.999999', 'sad')"
message type Y true "INSERT INTO kinds VALUES (3)"
message update U true "UPDATE t SET amount = 1e15 WHERE id = 4"
message update_key U true "UPDATE t SET id = -4 WHERE id = 4"
message update_full U true "UPDATE whole SET id = 2"
message update_unchanged U true "INSERT INTO t VALUES (7, repeat('y', 3000), 1, now(), 'USD'); UPDATE t SET amount = 2 WHERE id = 7"
message delete D true "DELETE FROM t WHERE id = -4"
message delete_full D true "DELETE FROM whole"
message truncate T true "TRUNCATE t, whole"
message truncate_cascade T true "TRUNCATE t RESTART IDENTITY CASCADE"
message message M true "SELECT pg_logical_emit_message(true, 'prefix', 'content')"
sql "SELECT pg_replication_origin_create('elsewhere')" > /dev/null
message origin O true "SELECT pg_replication_origin_session_setup('elsewhere'); BEGIN;
    SELECT pg_replication_origin_xact_setup('0/1234', now()); INSERT INTO t VALUES (8, $row); COMMIT"
sql "SELECT pg_replication_origin_drop('elsewhere'); SELECT pg_drop_replication_slot('fuzz')" > /dev/null

# copied NAME COLUMNS CHUNK QUERY: two bytes for the number of columns, less one, and the size of the chunks; then the COPY.
copied() {
    { printf '%02x%02x' "$(($2 - 1))" "$3"; psql -Xq -c "COPY ($4) TO STDOUT (FORMAT binary)" | xxd -p | tr -d '\n'; } | file "copy_binary/$1"
}
copied none 1 1 "SELECT 1::int8 WHERE false"
copied one_column 1 255 "SELECT i::int8 FROM generate_series(-3, 3) i"
copied payments 5 64 "SELECT i::int8, 'merchant-' || i, (i * 1.01)::numeric(18,2), '2026-11-25 10:00:00+00'::timestamptz, 'EUR'::char(3) FROM generate_series(1, 5) i"
copied nulls 9 7 "SELECT 1::int8, NULL::text, NULL::numeric, NULL::timestamptz, NULL::char(5), NULL::bool, NULL::uuid, NULL::float8, NULL::date"
copied empty_text 2 3 "SELECT 1::int8, ''"
copied long_text 2 200 "SELECT 1::int8, repeat('long', 150)"
copied not_numbers 3 1 "SELECT 1::int8, 'a', unnest(ARRAY['NaN', 'Infinity', '-Infinity']::numeric[])"
copied too_many_columns 1 16 "SELECT 1::int8, 2"
copied every_type 14 13 "SELECT id, t, n, tz, c, b, u, f8, d, j, i2, i4, f4, ts FROM kinds"

# numeric NAME VALUE
numeric() { sql "SELECT encode(numeric_send($2::numeric), 'hex')" | file "numeric/$1"; }
numeric zero 0
numeric zero_scaled 0.00
numeric one 1
numeric money 12345.67
numeric negative -0.0001
numeric digits_below_the_scale 0.1
numeric ten_thousand 10000
numeric largest 170141183460469231731687303715884105727
numeric one_more 170141183460469231731687303715884105728
numeric wide 1e60
numeric deep 1e-38
numeric deepest 1e-16383
numeric long "repeat('9', 300)"
numeric nan "'NaN'"
numeric infinity "'Infinity'"
numeric minus_infinity "'-Infinity'"

# value NAME TYPE EXPRESSION: one byte for the type, in the order of connectors/src/fuzzing.rs.
value() { { printf '%02x' "$2"; sql "SELECT encode($3, 'hex')"; } | tr -d '\n' | file "value/$1"; }
value int8 0 "int8send(-9223372036854775808)"
value text 1 "textsend('ä€😀')"
value text_empty 1 "textsend('')"
value numeric 2 "numeric_send(-12.3400)"
value timestamptz 3 "timestamptz_send('2026-11-25 10:00:00.000001+00')"
value timestamptz_infinity 3 "timestamptz_send('infinity')"
value char_padded 4 "bpcharsend('ab '::char(9))"
value bool 5 "boolsend(true)"
value uuid 6 "uuid_send('00112233-4455-6677-8899-aabbccddeeff')"
value float8_nan 7 "float8send('NaN')"
value float8_minus_zero 7 "float8send('-0')"
value date 8 "date_send('4713-01-01 BC')"
value date_infinity 8 "date_send('-infinity')"
value jsonb 9 "jsonb_send('{\"a\": 1}')"
value int2 10 "int2send(-1::int2)"
value int4 11 "int4send(7)"
value float4 12 "float4send(1.5::float4)"
value timestamp 13 "timestamp_send('294276-12-31 23:59:59.999999')"

# image NAME BYTES: rows as Tidemark stores them (engine/src/change/row.rs).
image() { printf '%s' "$2" | file "row_image/$1"; }
image empty ""
image nulls 000000
image unchanged 0401
image payment "0402 0a026d31 050222a40d 0d0040e0c1d02c0300 0a03455552"
image booleans 0203
image integers "0400 0401 04ffffffffffffffffff01"
image numerics "05000a 05a28d0680 0501ffffffffffffffffffffffffffffffffffff03 06 07 08"
image floats "09000000000000f87f 090000000000000080"
image text_empty "0a00"
image text_cut "0a0561"
image uuid_date "0b00112233445566778899aabbccddeeff 0cffffffff0f 0c00"
image opaque "0e03010203 0e00"
image long_integer "04ffffffffffffffffffffffffffff7f"
sql "DROP PUBLICATION fuzz; DROP TABLE t, whole, kinds; DROP TYPE mood"
