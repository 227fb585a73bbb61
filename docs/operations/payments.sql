-- The table of compose.yml, with 100,000 payments of the last two years.

CREATE TABLE payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    currency text NOT NULL,
    amount numeric(14, 2) NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO payments (currency, amount, status, created_at)
SELECT (ARRAY['EUR', 'GBP', 'USD'])[1 + i % 3], (i * 7919 % 100000) / 100.0,
       CASE WHEN i % 20 = 0 THEN 'failed' ELSE 'settled' END, now() - (100000 - i) * interval '10 minutes'
FROM generate_series(1, 100000) AS i;
