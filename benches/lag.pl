#!/usr/bin/env perl
# Runs a program that receives WAL and measures it from outside.
# Never goes on when the program has ended.
#
#   lag.pl HOST receivewal COUNT PROGRAM...   until the server hears that a record is flushed there
#   lag.pl HOST walmgr COUNT PROGRAM...       until the syncdaemon says that it is durable there
#       stdout: WAY <tab> MILLISECONDS, COUNT lines
#   lag.pl HOST wire PORT PROGRAM...          what it sends to PORT while pgbench runs for ten seconds
#       stdout: wire <tab> TICKS <tab> BYTES_SENT <tab> BYTES_OF_WAL
use strict;
use warnings;
use IO::Select;
use IPC::Open2;
use POSIX ();
use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC);

# So that what it runs ends with it.
$SIG{$_} = sub { exit 130 } for qw(INT TERM HUP);
my ($host, $way, $number, @program) = @ARGV;
my $patience_s = 20;

sub now { return clock_gettime(CLOCK_MONOTONIC) }

sub lsn {
    my ($high, $low) = $_[0] =~ m{([0-9A-F]+)/([0-9A-F]+)} or die "no LSN in: $_[0]\n";
    return (hex($high) << 32) + hex($low);
}

# A session that answers one query after the other.
sub session {
    my $pid = open2(my $out, my $in, 'psql', '-XAtq', '-h', $host, '-d', 'postgres');
    return sub {
        print {$in} "$_[0];\n";
        $in->flush();
        defined(my $line = <$out>) or die "psql ended\n";
        chomp $line;
        return $line;
    };
}

my $program_pid = open(my $said, '-|') // die "fork: $!";
if ($program_pid == 0) {
    open STDERR, '>&', \*STDOUT;
    exec {$program[0]} @program or die "$program[0]: $!";
}
END { local $?; kill 'INT', $program_pid and waitpid $program_pid, 0 if $program_pid }
my $heard = IO::Select->new($said);
my ($rest, $durable, $ticks) = ('', 0, 0);

# Reads what the syncdaemon says, waiting so long for it.
sub listen_to_it {
    my ($seconds) = @_;
    return unless $heard->can_read($seconds);
    sysread($said, $rest, 65536, length $rest) or die "$program[0] ended: $rest\n";
    while ($rest =~ s/^(.*)\n//) {
        my $line = $1;
        next unless $line =~ /durable up to|it has all up to/;
        $durable = lsn($line);
        $ticks++;
    }
}

my $ask = session();
my $ask_too = session();
my %durable = (
    walmgr => sub { listen_to_it(0.5); return $durable },
    receivewal => sub {
        sleep 0.0002;
        my $query = q{SELECT coalesce(max(flush_lsn), '0/0') FROM pg_stat_replication};
        return lsn($ask_too->($query));
    },
);

# Until everything up to there is durable.
sub wait_for {
    my ($lsn) = @_;
    my $give_up = now() + $patience_s;
    my $look = $durable{$way} // $durable{walmgr};
    until ($look->() >= $lsn) {
        die "not durable within $patience_s s\n" if now() > $give_up;
    }
}

sub emit { return lsn($ask->(q{SELECT pg_logical_emit_message(true, 'lag', repeat('x', 100))})) }

sub bytes_sent {
    my $sent = 0;
    for (qx(ss -tinH dport = :$number)) { $sent += $1 if /bytes_sent:(\d+)/ }
    return $sent;
}

# The first comes while the program still connects.
wait_for(emit());
if ($way eq 'wire') {
    my ($sent, $from) = (bytes_sent(), $durable);
    $ticks = 0;
    my $pgbench = fork() // die "fork: $!";
    if ($pgbench == 0) {
        open STDOUT, '>', '/dev/null';
        open STDERR, '>', '/dev/null';
        exec qw(pgbench -n -c 2 -T 10 -h), $host, 'postgres' or POSIX::_exit(127);
    }
    until (waitpid($pgbench, 1)) { listen_to_it(0.1) }
    wait_for(emit());
    printf "wire\t%d\t%d\t%d\n", $ticks, bytes_sent() - $sent, $durable - $from;
    exit 0;
}
for (1 .. $number) {
    sleep rand 0.03;
    my $lsn = emit();
    my $begun = now();
    wait_for($lsn);
    printf "%s\t%.3f\n", $way, (now() - $begun) * 1000;
}
