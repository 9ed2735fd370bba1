/* measure N PROGRAM [ARGUMENT...]: runs PROGRAM N times and prints one JSON line: wall time in milliseconds (median,
 * least, most), processor time in milliseconds (median), the highest resident set in kilobytes, the last exit code.
 * Static and tiny, because the resident set of the parent counts as the child's before exec. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static double milliseconds(struct timeval t) { return t.tv_sec * 1e3 + t.tv_usec / 1e3; }

int main(int count, char **argument) {
    int runs = count > 2 ? atoi(argument[1]) : 0, status = 0;
    long resident = 0;
    if (runs < 1) {
        fprintf(stderr, "usage: measure N PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    double *wall = calloc(runs, sizeof *wall), *cpu = calloc(runs, sizeof *cpu);
    for (int i = 0; i < runs; i++) {
        struct rusage usage;
        double start = now();
        pid_t child = vfork();
        if (child == 0) {
            int null = open("/dev/null", O_RDWR);
            dup2(null, 0);
            dup2(null, 1);
            dup2(null, 2);
            execv(argument[2], argument + 2);
            _exit(127);
        }
        if (child < 0 || wait4(child, &status, 0, &usage) != child) {
            perror("measure");
            return 1;
        }
        wall[i] = now() - start;
        cpu[i] = milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime);
        if (usage.ru_maxrss > resident) resident = usage.ru_maxrss;
    }
    qsort(wall, runs, sizeof *wall, compare);
    qsort(cpu, runs, sizeof *cpu, compare);
    printf("{\"wall_ms\": %.2f, \"least_ms\": %.2f, \"most_ms\": %.2f, \"cpu_ms\": %.2f, \"resident_kb\": %ld, \"exit\": %d, "
           "\"runs\": %d}\n",
           wall[runs / 2], wall[0], wall[runs - 1], cpu[runs / 2], resident,
           WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), runs);
    return 0;
}
