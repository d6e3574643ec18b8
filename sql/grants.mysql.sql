-- Three users of Cassata's database, each with what it needs and no more, for MySQL 8 and MariaDB 10.6 or later:
--   cassata_admin    for 'cassata db upgrade': everything, in this database alone
--   cassata_service  for 'cassata service' and the commands 'app', 'key' and 'event'
--   cassata_worker   for 'cassata worker': it adds no events but those of series, removes none, and never sees an API key
-- None but the first can make, change or drop a table.
--
-- To be replaced before use: DATABASE_NAME, and ADMIN_PASSWORD, SERVICE_PASSWORD, WORKER_PASSWORD (of letters and digits). As root:
--
--   mysql -e 'CREATE DATABASE cassata CHARACTER SET utf8mb4'
--   mysql cassata < sql/mysql.sql
--   sed -e 's/DATABASE_NAME/cassata/' -e 's/ADMIN_PASSWORD/.../' -e 's/SERVICE_PASSWORD/.../' -e 's/WORKER_PASSWORD/.../' \
--       sql/grants.mysql.sql | mysql
--
-- The tables have to be there: a grant on a table that is not is refused. May be applied again, and has to be after an upgrade
-- that brings new tables; it changes no password then. Where all hosts are known, write them in place of '%', and where the
-- server has certificates, add REQUIRE SSL.

CREATE USER IF NOT EXISTS 'cassata_admin'@'%' IDENTIFIED BY 'ADMIN_PASSWORD';
CREATE USER IF NOT EXISTS 'cassata_service'@'%' IDENTIFIED BY 'SERVICE_PASSWORD';
CREATE USER IF NOT EXISTS 'cassata_worker'@'%' IDENTIFIED BY 'WORKER_PASSWORD';

-- In this one line a _ in the database's name stands for any character: write it as \_ .
GRANT ALL PRIVILEGES ON `DATABASE_NAME`.* TO 'cassata_admin'@'%';

GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.events TO 'cassata_service'@'%';
-- INSERT: the line that says that an event was retried by hand.
GRANT SELECT, INSERT, DELETE ON `DATABASE_NAME`.attempts TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE ON `DATABASE_NAME`.applications TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE ON `DATABASE_NAME`.api_keys TO 'cassata_service'@'%';
GRANT SELECT, INSERT, DELETE ON `DATABASE_NAME`.ended_sessions TO 'cassata_service'@'%';
GRANT SELECT, INSERT ON `DATABASE_NAME`.installation TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.paces TO 'cassata_service'@'%';
GRANT SELECT ON `DATABASE_NAME`.holdings TO 'cassata_service'@'%';
GRANT SELECT ON `DATABASE_NAME`.breakers TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.series TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE ON `DATABASE_NAME`.operations TO 'cassata_service'@'%';
GRANT SELECT ON `DATABASE_NAME`.tallies TO 'cassata_service'@'%';
GRANT SELECT ON `DATABASE_NAME`.workers TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.links TO 'cassata_service'@'%';
GRANT SELECT, DELETE ON `DATABASE_NAME`.outputs TO 'cassata_service'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.batches TO 'cassata_service'@'%';
GRANT SELECT, INSERT ON `DATABASE_NAME`.outbox TO 'cassata_service'@'%';
GRANT SELECT ON `DATABASE_NAME`.streams TO 'cassata_service'@'%';
GRANT SELECT ON `DATABASE_NAME`.alembic_version TO 'cassata_service'@'%';

-- INSERT: the occurrences of series. DELETE: what ended long ago.
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.events TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, DELETE ON `DATABASE_NAME`.attempts TO 'cassata_worker'@'%';
-- UPDATE: a worker gives signing secrets to applications that an older Cassata has left without.
GRANT SELECT, UPDATE ON `DATABASE_NAME`.applications TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.paces TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.holdings TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.breakers TO 'cassata_worker'@'%';
GRANT SELECT, UPDATE ON `DATABASE_NAME`.series TO 'cassata_worker'@'%';
GRANT SELECT, UPDATE ON `DATABASE_NAME`.operations TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.tallies TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.workers TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.links TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.outputs TO 'cassata_worker'@'%';
GRANT SELECT ON `DATABASE_NAME`.batches TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE ON `DATABASE_NAME`.outbox TO 'cassata_worker'@'%';
GRANT SELECT, INSERT, UPDATE ON `DATABASE_NAME`.streams TO 'cassata_worker'@'%';
GRANT SELECT ON `DATABASE_NAME`.alembic_version TO 'cassata_worker'@'%';
