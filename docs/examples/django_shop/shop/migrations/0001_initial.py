"""Products."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first table."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100)),
                ("price", models.DecimalField(decimal_places=2, max_digits=10)),
            ],
        ),
    )
