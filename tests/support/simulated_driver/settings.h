/* What the simulated driver is to be, from /etc/simulated-driver inside the test's root: lines of KEY=VALUE. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char settings[4096];

static void read_settings(void) {
    if (settings[0]) return; /* once for each process: every call asks */
    FILE *f = fopen("/etc/simulated-driver", "r");
    if (!f) return;
    settings[0] = '\n';
    settings[1 + fread(settings + 1, 1, sizeof settings - 2, f)] = 0;
    fclose(f);
}

/* The value of KEY, up to its line's end; null where it is not set. */
static const char *setting(const char *key) {
    char line[96];
    read_settings();
    snprintf(line, sizeof line, "\n%s=", key);
    const char *at = strstr(settings, line);
    return at ? at + strlen(line) : 0;
}

static long number(const char *key, long otherwise) {
    const char *value = setting(key);
    return value ? atol(value) : otherwise;
}

static int names(const char *key, const char *function) {
    const char *value = setting(key);
    size_t n = strlen(function);
    return value && !strncmp(value, function, n) && (value[n] == '\n' || value[n] == 0 || value[n] == '=');
}

/* Does to FUNCTION what the settings say; the code that it is to return, 0 for none. */
static int fault(const char *function) {
    if (names("hang", function)) for (;;) pause();
    if (names("crash", function)) raise(SIGSEGV);
    if (names("abort", function)) { fprintf(stderr, "the simulated driver aborts\n"); abort(); }
    /* A child that keeps our output open, as nvidia-modprobe might. */
    if (names("grandchild", function) && fork() == 0) { setsid(); sleep(30); _exit(0); }
    if (names("fail", function)) return atoi(strchr(setting("fail"), '=') + 1);
    return 0;
}
#define FAULTS do { int code = fault(__func__); if (code) return code; } while (0)
