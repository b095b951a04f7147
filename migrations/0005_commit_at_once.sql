-- A commit is one statement and its own transaction, so it must fail by itself when a guarded
-- write hit fewer rows than it was given.
CREATE FUNCTION expect_rows(what text, sent bigint, hit bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF hit <> sent THEN
        RAISE EXCEPTION '%: % of % rows could change', what, hit, sent USING ERRCODE = 'MC001';
    END IF;
    RETURN true;
END
$$;

-- A task's row is written when it is assigned and again when it ends. An index over its state
-- would make the second write enter every index anew; a rebuild reads all of an unfinished job's
-- rows in any case. With room left on its page the second write enters none.
DROP INDEX tasks_live;
ALTER TABLE tasks SET (fillfactor = 50);
