-- A catalog of schema version 0003 with one row of each type, as that version's program wrote it.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE backups (
	backup INTEGER NOT NULL, 
	backup_uuid TEXT NOT NULL, 
	job INTEGER NOT NULL, 
	volume TEXT NOT NULL, 
	volume_name TEXT NOT NULL, 
	blocks INTEGER NOT NULL, 
	block_bytes INTEGER NOT NULL, 
	record_bytes INTEGER NOT NULL, 
	stream_bytes INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	created TEXT NOT NULL, 
	consistency TEXT NOT NULL, 
	view_means TEXT NOT NULL, 
	detail TEXT NOT NULL, level TEXT DEFAULT 'full' NOT NULL, parent INTEGER DEFAULT 0 NOT NULL, tracking TEXT DEFAULT '' NOT NULL, generation INTEGER DEFAULT 0 NOT NULL, samples BLOB DEFAULT (X'') NOT NULL, map_state TEXT DEFAULT 'none' NOT NULL, files INTEGER DEFAULT 0 NOT NULL, selection TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT pk_backups PRIMARY KEY (backup)
);
INSERT INTO "backups" VALUES(1,'cccccccccccccccccccccccccccccccc',1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','home',8589934592,512,1048576,1099511627776,'building','2026-01-11T10:43:48Z','crash','hold','{}','full',0,'',0,X'','complete',12,'');
CREATE TABLE cartridges (
	tag TEXT NOT NULL, 
	cartridge TEXT NOT NULL, 
	node TEXT NOT NULL, 
	status TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	"end" INTEGER NOT NULL, 
	sequence INTEGER NOT NULL, 
	capacity_bytes INTEGER NOT NULL, 
	created TEXT NOT NULL, 
	CONSTRAINT pk_cartridges PRIMARY KEY (tag)
);
INSERT INTO "cartridges" VALUES('LTO001L8','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','tape-1','writable','{}',7,1,12000000000000,'2026-01-11T10:43:48Z');
CREATE TABLE counters (
	name TEXT NOT NULL, 
	value INTEGER NOT NULL, 
	CONSTRAINT pk_counters PRIMARY KEY (name)
);
INSERT INTO "counters" VALUES('epoch',1);
CREATE TABLE events (
	job INTEGER NOT NULL, 
	sequence INTEGER NOT NULL, 
	time TEXT NOT NULL, 
	level TEXT NOT NULL, 
	text TEXT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (job, sequence)
);
INSERT INTO "events" VALUES(1,1,'2026-01-11T10:43:48Z','info','started');
CREATE TABLE extents (
	backup INTEGER NOT NULL, 
	packed BLOB NOT NULL, 
	CONSTRAINT pk_extents PRIMARY KEY (backup), 
	CONSTRAINT fk_extents_backup FOREIGN KEY(backup) REFERENCES backups (backup) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO "extents" VALUES(1,X'017061636B656400');
CREATE TABLE items (
	item INTEGER NOT NULL, 
	job INTEGER NOT NULL, 
	purpose TEXT NOT NULL, 
	state TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	movers TEXT NOT NULL, 
	epoch INTEGER NOT NULL, 
	parameter_list BLOB NOT NULL, 
	planned_bytes INTEGER NOT NULL, 
	status INTEGER NOT NULL, 
	sense BLOB NOT NULL, 
	segments INTEGER NOT NULL, 
	seconds DOUBLE NOT NULL, 
	ledger TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	CONSTRAINT pk_items PRIMARY KEY (item), 
	CONSTRAINT fk_items_job FOREIGN KEY(job) REFERENCES jobs (job) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO "items" VALUES(1,1,'data','queued',0,'[]',0,X'00FF00FF00FF00FF00FF00FF00FF00FF',1073741824,-1,X'',0,0.0,'[]','');
CREATE TABLE jobs (
	job INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	token TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	volume_name TEXT NOT NULL, 
	volume TEXT NOT NULL, 
	backup INTEGER NOT NULL, 
	"view" TEXT NOT NULL, 
	submitted TEXT NOT NULL, 
	started TEXT NOT NULL, 
	ended TEXT NOT NULL, 
	planned_bytes INTEGER NOT NULL, 
	done_bytes INTEGER NOT NULL, 
	error_count INTEGER NOT NULL, 
	exit_code INTEGER NOT NULL, 
	seconds_copying DOUBLE NOT NULL, 
	is_cancelled BOOLEAN NOT NULL, 
	"plan" TEXT NOT NULL, 
	result TEXT NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (job)
);
INSERT INTO "jobs" VALUES(1,'backup','copying','','token-1','home','home','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',0,'','2026-01-11T10:43:48Z','2026-01-11T10:43:48Z','',1099511627776,0,0,-1,0.1,0,'{"parts": []}','');
CREATE TABLE map_headers (
	backup INTEGER NOT NULL, 
	packed BLOB NOT NULL, 
	CONSTRAINT pk_map_headers PRIMARY KEY (backup), 
	CONSTRAINT fk_map_headers_backup FOREIGN KEY(backup) REFERENCES backups (backup) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO "map_headers" VALUES(1,X'0168656164657200');
CREATE TABLE map_pages (
	backup INTEGER NOT NULL, 
	page INTEGER NOT NULL, 
	is_run BOOLEAN NOT NULL, 
	first_path BLOB NOT NULL, 
	last_path BLOB NOT NULL, 
	rows INTEGER NOT NULL, 
	packed BLOB NOT NULL, 
	CONSTRAINT pk_map_pages PRIMARY KEY (backup, page)
);
INSERT INTO "map_pages" VALUES(1,0,0,X'',X'686F6D6500FF',1000,X'0070616765FF');
CREATE TABLE meta (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_meta PRIMARY KEY (name)
);
INSERT INTO "meta" VALUES('store','0123456789abcdef0123456789abcdef');
CREATE TABLE nodes (
	name TEXT NOT NULL, 
	public_key BLOB NOT NULL, 
	addresses TEXT NOT NULL, 
	roles TEXT NOT NULL, 
	boot_id BLOB NOT NULL, 
	seen TEXT NOT NULL, 
	CONSTRAINT pk_nodes PRIMARY KEY (name)
);
INSERT INTO "nodes" VALUES('disk-1',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F','["tcp://127.0.0.1:7001", "ipc:///run/ä.sock"]','["disk"]',X'00000000000000000000000000000000','2026-01-11T10:43:48Z');
CREATE TABLE parts (
	backup INTEGER NOT NULL, 
	part INTEGER NOT NULL, 
	tag TEXT NOT NULL, 
	cartridge TEXT NOT NULL, 
	sequence INTEGER NOT NULL, 
	header_object INTEGER NOT NULL, 
	data_object INTEGER NOT NULL, 
	trailer_object INTEGER NOT NULL, 
	"end" INTEGER NOT NULL, 
	records INTEGER NOT NULL, 
	stream_start INTEGER NOT NULL, 
	stream_bytes INTEGER NOT NULL, 
	root TEXT NOT NULL, 
	is_last BOOLEAN NOT NULL, 
	created TEXT NOT NULL, 
	CONSTRAINT pk_parts PRIMARY KEY (backup, part), 
	CONSTRAINT fk_parts_backup FOREIGN KEY(backup) REFERENCES backups (backup) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO "parts" VALUES(1,1,'LTO001L8','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1,3,4,100,102,96,0,100663296,'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',1,'2026-01-11T10:43:48Z');
CREATE TABLE quiet_waits (
	wait INTEGER NOT NULL, 
	volume TEXT NOT NULL, 
	job INTEGER NOT NULL, 
	asked TEXT NOT NULL, 
	quiet_s DOUBLE NOT NULL, 
	waited_s DOUBLE NOT NULL, 
	is_found BOOLEAN NOT NULL, 
	writer TEXT NOT NULL, 
	CONSTRAINT pk_quiet_waits PRIMARY KEY (wait)
);
INSERT INTO "quiet_waits" VALUES(1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,'2026-01-11T10:43:48Z',3.0,4.5,1,'10.0.0.7');
CREATE TABLE volumes (
	volume TEXT NOT NULL, 
	name TEXT NOT NULL, 
	node TEXT NOT NULL, 
	designator BLOB NOT NULL, 
	blocks INTEGER NOT NULL, 
	block_bytes INTEGER NOT NULL, 
	token TEXT NOT NULL, 
	created TEXT NOT NULL, 
	is_deleted BOOLEAN NOT NULL, quiet_s DOUBLE DEFAULT (-1) NOT NULL, sync_timeout_s DOUBLE DEFAULT (-1) NOT NULL, 
	CONSTRAINT pk_volumes PRIMARY KEY (volume)
);
INSERT INTO "volumes" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','home','disk-1',X'3000000000000000',8589934592,512,'t-1','2026-01-11T10:43:48Z',0,5.0,-1.0);
CREATE INDEX ix_jobs_state_job ON jobs (state, job);
CREATE INDEX ix_jobs_token ON jobs (token);
CREATE INDEX ix_items_job_item ON items (job, item);
CREATE INDEX ix_quiet_waits_volume_wait ON quiet_waits (volume, wait);
COMMIT;

