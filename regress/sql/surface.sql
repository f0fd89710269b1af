-- What the extension consists of, and that all of it says what it is.

-- Types that come with relations and types: members in their own right from 18 on
CREATE TEMP VIEW types_of_types AS SELECT oid FROM pg_type WHERE typrelid <> 0 OR typelem <> 0;

-- The objects that belong to it
SELECT pg_describe_object(classid, objid, objsubid) AS object
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_background_queue')
  AND NOT (classid = 'pg_type'::regclass AND objid IN (SELECT oid FROM types_of_types))
ORDER BY pg_describe_object(classid, objid, objsubid) COLLATE "C";

SELECT extversion, extrelocatable FROM pg_extension WHERE extname = 'pg_background_queue';

-- The table
SELECT relkind, relpersistence, relrowsecurity, relforcerowsecurity, reloptions
FROM pg_class WHERE oid = 'pg_background_tasks'::regclass;

SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull AS not_null,
       pg_get_expr(adbin, adrelid) AS default
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 'pg_background_tasks'::regclass AND attnum > 0 AND NOT attisdropped
ORDER BY attnum;

SELECT indexrelid::regclass AS index, indisprimary AS primary, pg_get_indexdef(indexrelid) AS definition
FROM pg_index WHERE indrelid = 'pg_background_tasks'::regclass
ORDER BY indexrelid::regclass::text COLLATE "C";

SELECT pg_get_serial_sequence('pg_background_tasks', 'id') AS sequence;

SELECT polname, polcmd, polpermissive, polroles::regrole[] AS roles
FROM pg_policy WHERE polrelid = 'pg_background_tasks'::regclass ORDER BY polname;

-- The states, in their order
SELECT enumlabel FROM pg_enum
WHERE enumtypid = 'pg_background_queue_task_state'::regtype ORDER BY enumsortorder;

-- The functions
SELECT proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
       provolatile AS volatility, proparallel AS parallel, proisstrict AS strict, prosecdef AS definer,
       proretset AS set, lanname AS language
FROM pg_proc p JOIN pg_language l ON l.oid = prolang
WHERE proname LIKE 'pg\_background%' ORDER BY proname COLLATE "C";

-- What others than the owner may do
SELECT objects.object, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee,
       privilege_type, is_grantable
FROM (
    SELECT relname::text AS object, relowner AS owner,
           coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl
    FROM pg_class WHERE oid IN ('pg_background_tasks'::regclass, 'pg_background_tasks_id_seq'::regclass)
    UNION ALL
    SELECT proname, proowner, coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc WHERE proname LIKE 'pg\_background%'
    UNION ALL
    SELECT typname, typowner, coalesce(typacl, acldefault('T', typowner))
    FROM pg_type WHERE oid = 'pg_background_queue_task_state'::regtype
) AS objects, aclexplode(acl) AS acl
WHERE grantee <> owner
ORDER BY objects.object COLLATE "C", grantee, privilege_type;

-- No column has privileges of its own
SELECT attname, attacl FROM pg_attribute
WHERE attrelid = 'pg_background_tasks'::regclass AND attacl IS NOT NULL;

-- What has no COMMENT: members, columns, indexes other than the key's, policies
WITH members AS (
    SELECT classid, objid FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_background_queue')
      AND NOT (classid = 'pg_type'::regclass AND objid IN (SELECT oid FROM types_of_types))
), tables AS (
    SELECT objid FROM members JOIN pg_class ON oid = objid
    WHERE classid = 'pg_class'::regclass AND relkind IN ('r', 'p', 'v')
), objects AS (
    SELECT classid, objid, 0 AS objsubid FROM members
    UNION ALL
    SELECT 'pg_class'::regclass, attrelid, attnum FROM pg_attribute
    WHERE attrelid IN (SELECT objid FROM tables) AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'pg_class'::regclass, indexrelid, 0 FROM pg_index
    WHERE indrelid IN (SELECT objid FROM tables) AND NOT indisprimary
    UNION ALL
    SELECT 'pg_policy'::regclass, oid, 0 FROM pg_policy WHERE polrelid IN (SELECT objid FROM tables)
    UNION ALL
    SELECT 'pg_extension'::regclass, oid, 0 FROM pg_extension WHERE extname = 'pg_background_queue'
)
SELECT pg_describe_object(o.classid, o.objid, o.objsubid) AS without_comment
FROM objects o LEFT JOIN pg_description d
  ON d.classoid = o.classid AND d.objoid = o.objid AND d.objsubid = o.objsubid
WHERE coalesce(d.description, '') = ''
ORDER BY 1;

-- What pg_dump takes along
SELECT config::regclass AS dumped, condition
FROM pg_extension, unnest(extconfig, extcondition) AS entries (config, condition)
WHERE extname = 'pg_background_queue';

-- The settings
SELECT name, vartype, unit, context, min_val,
       CASE WHEN boot_val = (current_setting('max_worker_processes')::int / 2)::text
            THEN 'max_worker_processes / 2' ELSE boot_val END AS default,
       pending_restart, short_desc <> '' AS described
FROM pg_settings WHERE name LIKE 'pg\_background\_queue.%' ORDER BY name COLLATE "C";

-- They are the postmaster's file's, not a session's
SET pg_background_queue.max_parallel_running_tasks_count = 0;
SET pg_background_queue.retry_count = 1;
ALTER ROLE CURRENT_USER SET pg_background_queue.retry_count = 1;
-- and there are no others (before 15 no prefix could be reserved)
DO $$
DECLARE
    refused boolean := false;
BEGIN
    BEGIN
        SET pg_background_queue.no_such_setting = 1;
    EXCEPTION WHEN invalid_name THEN
        refused := true;
    END;
    ASSERT refused = (current_setting('server_version_num')::integer >= 150000);
END
$$;
