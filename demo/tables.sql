CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, amount numeric NOT NULL, paid bool NOT NULL);
CREATE TABLE journal (task text, ran_as text, process text);

INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 10000) n;
INSERT INTO orders SELECT n, 1 + n % 10000, n % 100, false FROM generate_series(1, 100000) n;
