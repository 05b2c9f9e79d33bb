#!/usr/bin/env perl
# Runs the commands it reads, one after the other, and prints how long each took.
# Never goes on after a command that failed. A shell's own `time` forks a shell too, which costs as
# much as a tenth of what is measured here; this forks the program and nothing else.
#
#   stdin:  LABEL <tab> COMMAND [<tab> COMMAND ...]     words split at spaces, no quoting; one that begins with
#                                                       -C DIR is run there, without a program that changes to it
#   stdout: LABEL <tab> MILLISECONDS <tab> PEAK_KIB <tab> CPU_MS    all commands of the line together; the
#                                                       largest peak; both 0 where they cannot be known
# Lines with the label `-` are run and not printed.
use strict;
use warnings;
use POSIX ();
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

$| = 1;

# wait4 reports the peak of one child; Perl has no function for it, only its number.
my %wait4_number = (x86_64 => 61, aarch64 => 260);
my $wait4 = $wait4_number{ (POSIX::uname())[4] };

# Waits for a child; returns its wait status, its peak resident memory in KiB and its processor time in milliseconds.
sub reap {
    my ($child) = @_;
    if (!defined $wait4) {
        waitpid($child, 0);
        return ($?, 0, 0);
    }
    my ($status, $usage) = ("\0" x 4, "\0" x 144);
    while (syscall($wait4, $child, $status, 0, $usage) < 0) {
        die "wait4: $!" unless $!{EINTR};
    }
    # struct rusage: two timevals of 16 bytes each, then ru_maxrss.
    my ($user_s, $user_us, $system_s, $system_us) = unpack('q4', $usage);
    my $cpu_ms = ($user_s + $system_s) * 1000 + ($user_us + $system_us) / 1000;
    return (unpack('i', $status), unpack('x32 q', $usage), $cpu_ms);
}

while (my $line = <STDIN>) {
    chomp $line;
    my ($label, @commands) = split /\t/, $line;
    my @parsed = map { [split / /] } @commands;
    my ($peak_kib, $cpu_ms) = (0, 0);
    my $begun = clock_gettime(CLOCK_MONOTONIC);
    for my $command (@parsed) {
        my $child = fork() // die "fork: $!";
        if ($child == 0) {
            open STDOUT, '>', '/dev/null';
            if ($command->[0] eq '-C') {
                my (undef, $folder) = splice @$command, 0, 2;
                chdir $folder or POSIX::_exit(126);
            }
            exec {$command->[0]} @$command or POSIX::_exit(127);
        }
        my ($status, $kib, $ms) = reap($child);
        die "failed with wait status $status: @$command\n" if $status != 0;
        $peak_kib = $kib if $kib > $peak_kib;
        $cpu_ms += $ms;
    }
    my $ms = (clock_gettime(CLOCK_MONOTONIC) - $begun) * 1000;
    printf "%s\t%.3f\t%d\t%.3f\n", $label, $ms, $peak_kib, $cpu_ms if $label ne '-';
}
