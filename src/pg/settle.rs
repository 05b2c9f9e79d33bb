//! What every session of ours sets first, so that what an administrator sets for everybody, a role or
//! a database neither ends it nor changes an answer. Never needs a privilege. Invariant: nothing is
//! looked up by name before `search_path` is ours.

/// One message, so that no timeout falls between: what is set for everybody counts until its end.
///
/// The list of timeouts is the server's own, so that those of the next version are in it. A minimum
/// above zero means that it cannot be switched off (`deadlock_timeout`), and then it ends no session.
pub(super) const FOR_ALL: &str = "\
    SET search_path TO pg_catalog, pg_temp; \
    SET statement_timeout TO 0; \
    SET synchronous_commit TO local; \
    SET default_transaction_read_only TO off; \
    SET default_transaction_deferrable TO off; \
    SET default_transaction_isolation TO 'read committed'; \
    SET row_security TO on; \
    SET datestyle TO 'ISO, YMD'; \
    SET intervalstyle TO 'postgres'; \
    SET bytea_output TO 'hex'; \
    SET extra_float_digits TO 1; \
    SET client_encoding TO 'UTF8'; \
    SELECT set_config(name, '0', false) FROM pg_settings \
    WHERE right(name, 8) = '_timeout' \
        AND (context = 'user' \
            OR context = 'superuser' AND current_setting('is_superuser') = 'on') \
        AND CASE WHEN vartype IN ('integer', 'real') THEN min_val::float8 <= 0 END \
        AND setting <> '0'";

/// Where the role may: only superusers do, and whom they let.
pub(super) const QUIETLY: &str = "\
    SELECT set_config(name, quiet, false) FROM (VALUES \
        ('log_statement', 'none'), ('log_duration', 'off'), \
        ('log_min_duration_statement', '-1'), ('log_min_duration_sample', '-1')) \
        AS wanted (name, quiet) \
    WHERE current_setting('is_superuser') = 'on' AND current_setting(name, true) IS NOT NULL";
