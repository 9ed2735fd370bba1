/* What the simulated driver is to be: lines of KEY=VALUE in /etc/simulated-driver, read by every process anew. Only
 * what the stub C library has may be called: see build/simulated_driver.rs. */
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* The first value of KEY, up to its line's end; null where it is not set. */
const char *setting(const char *key);
/* That value as a decimal number. */
long number(const char *key, long otherwise);
/* Whether a line KEY=NAME or KEY=NAME=… stands there; its end, or null. */
const char *names(const char *key, const char *name);
/* Does to FUNCTION what the settings say; the code that it is to return, 0 for none. */
int fault(const char *function);
#define FAULTS do { int code = fault(__func__); if (code) return code; } while (0)

/* Three parts of a version: KEY's value, or what is stamped into this copy of the library. */
struct version { long part[3]; };
struct version version(const char *key);
/* The same as text, to its end. */
const char *version_text(const char *key);

struct model {
    const char *key, *id, *name; /* as the tests call it; PCI device id; as CUDA calls it */
    int major, minor, multiprocessors;
    size_t memory;
    int clock, memory_clock, bus, l2, copies, shared, threads, links;
};
const struct model *model(void);
/* "NVIDIA H100 80GB HBM3", and the setting "label" behind it. */
void print_name(char *to, size_t size);
/* How many NVLinks each GPU has. */
int links(void);
/* Place of a GPU on the PCI bus, domain 0. */
int bus(int gpu);
int slot(int gpu);
/* The GPU at "00000000:53:00.0"; -1 where there is none. */
int gpu_at(const char *address);
/* Byte I of a GPU's UUID: zeros, and its number at the end. */
int uuid_byte(int gpu, int i);

#pragma GCC visibility pop
