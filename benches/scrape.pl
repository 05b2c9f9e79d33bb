#!/usr/bin/env perl
# Scrapes a metrics listener, as Prometheus does, and prints how long each scrape took.
# Never goes on after an answer that is no page of metrics.
#
#   scrape.pl PORT COUNT           so often, as fast as it goes
#   scrape.pl PORT FLAG INTERVAL   every INTERVAL seconds while the file FLAG exists, until its directory is gone
#       stdout: scrape <tab> MILLISECONDS <tab> BYTES
use strict;
use warnings;
use File::Basename qw(dirname);
use IO::Socket::INET;
use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC);

my ($port, $count_or_flag, $interval_s) = @ARGV;
$| = 1;

sub now { return clock_gettime(CLOCK_MONOTONIC) }

sub scrape {
    my $begun = now();
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 5)
        or die "connect to port $port: $!\n";
    print {$socket} "GET /metrics HTTP/1.1\r\nHost: walmgr\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n";
    $socket->flush();
    local $/;
    my $answer = <$socket> // '';
    my $ms = (now() - $begun) * 1000;
    $answer =~ m{^HTTP/1\.1 200 .*\n# EOF\n}s or die 'no page: ', substr($answer, 0, 200), "\n";
    printf "scrape\t%.3f\t%d\n", $ms, length $answer;
}

if (!defined $interval_s) {
    scrape() for 1 .. $count_or_flag;
    exit 0;
}
while (-d dirname($count_or_flag)) {
    my $begun = now();
    scrape() if -e $count_or_flag;
    my $rest_s = $interval_s - (now() - $begun);
    sleep($rest_s) if $rest_s > 0;
}
